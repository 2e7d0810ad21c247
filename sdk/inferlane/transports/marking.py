# SPDX-License-Identifier: Apache-2.0
"""The DSCP on the client's own packets: which class gets which, and how a socket is told."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys

__all__ = ["DEFAULT_DSCP", "mark"]

# EF, AF21, AF11, LE: RFC 3246, RFC 2597, RFC 8622. The gateway's reference config has the same.
DEFAULT_DSCP = {"realtime": 46, "interactive": 18, "batch": 10, "background": 1}

# RFC 8622 section 3 (LE), RFC 4594 section 4.10 (CS1); from CS4 on real-time traffic, RFC 4594 section 2.
_LOWER_EFFORT = {1, 8}
_FIRST_REALTIME = 32

_log = logging.getLogger(__name__)


def mark(sock: socket.socket, host: str, dscp: int) -> None:
    """Mark what this socket sends to `host`; the ECN bits stay 0 (RFC 3168), for nobody here reads the echo.

    Where the kernel refuses, requests travel unmarked and say so in the log: a mark is a wish, not a condition.
    """
    if dscp == 0:
        return
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2)
        if sock.family == socket.AF_INET or _is_mapped(host):
            # Linux ignores IPV6_TCLASS towards IPv4-mapped peers.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
        if sys.platform == "linux":
            # For this machine's own queues, and last: IP_TOS sets it too, by the TOS bits of RFC 1349, which put
            # AF21 behind LE (`rt_tos2priority` in include/net/route.h).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _priority(dscp))
    except OSError as error:
        _log.warning("requests to %s travel without DSCP %d: %s", host, dscp, error)


def _priority(dscp: int) -> int:
    """0..6, what needs no capability (socket(7)); queues with three bands send 6 first and 2 last."""
    if dscp in _LOWER_EFFORT:
        return 2
    return 6 if dscp >= _FIRST_REALTIME else 0


def _is_mapped(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
