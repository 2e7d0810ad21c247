# SPDX-License-Identifier: Apache-2.0
"""How one encoded request travels: a file for each transport, and the socket and QUIC connection below them."""
