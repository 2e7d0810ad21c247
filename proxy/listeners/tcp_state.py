# SPDX-License-Identifier: Apache-2.0
"""What Linux knows of a TCP connection: its round trip, and whether the other end has left.

A loop that does not read, because nobody takes the bytes, is not told that the client is gone. The kernel is, and says
so at any time: struct tcp_info in linux/tcp.h.
"""

from __future__ import annotations

import socket
import struct

__all__ = ["has_left", "notice_silence", "round_trip_s"]

_ESTABLISHED = 1  # include/net/tcp_states.h
_RTT = struct.Struct("@I")
_RTT_OFFSET = 68  # tcpi_rtt, in us
_SILENCE_MS = 30_000
"""A client whose machine or network is gone is noticed by then. QUIC's own limit here is 60 s."""
_PROBES = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", _SILENCE_MS))


def has_left(sock: socket.socket) -> bool:
    """Whether the peer has closed or reset this connection, read or not; False for a Unix socket."""
    if sock.family == socket.AF_UNIX:
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
    except OSError:  # closed here
        return True


def round_trip_s(sock: socket.socket) -> float | None:
    """The smoothed round trip of a connection in seconds; None where nobody has measured one."""
    if sock.family == socket.AF_UNIX:
        return None
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + _RTT.size)
    except OSError:
        return None
    if len(told) < _RTT_OFFSET + _RTT.size:
        return None
    (microseconds,) = _RTT.unpack_from(told, _RTT_OFFSET)
    return microseconds / 1e6 if microseconds else None


def notice_silence(sock: socket.socket) -> None:
    """Have the kernel end a connection whose peer answers nothing for half a minute (its own habit: 15 min, or 2 h)."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
