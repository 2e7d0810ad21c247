# SPDX-License-Identifier: Apache-2.0
"""Traffic control kept while the gateway runs: the helper process that holds the rights."""
