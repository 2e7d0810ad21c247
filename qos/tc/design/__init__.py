# SPDX-License-Identifier: Apache-2.0
"""From a policy and what a kernel can do to the state that each device shall have."""
