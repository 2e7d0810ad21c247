# SPDX-License-Identifier: Apache-2.0
"""Sans-IO codecs: bytes in, arrivals out; replies in, bytes out. No socket, no clock, no log."""
