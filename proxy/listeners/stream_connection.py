# SPDX-License-Identifier: Apache-2.0
"""One client's TCP or Unix connection: between the loop's transport and whoever parses what comes over it.

It knows what a parser does not say: since when a head is unfinished, whether a request is in flight, how to hang up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast

from proxy.listeners.marks import Marks
from proxy.listeners.tcp_marks import carry
from proxy.listeners.tcp_state import has_left, notice_silence, round_trip_s
from qos.traffic_class import TrafficClass

__all__ = ["Owner", "StreamConnection"]

_WRITE_AHEAD = 64 * 1024
"""Unsent bytes of a reply before its backend is made to wait; the kernel has its own buffer behind them."""
_AT_ONCE = struct.pack("@ii", 1, 0)  # struct linger: close with a reset


class Owner(Protocol):
    """Who keeps the connections."""

    def opened(self, connection: StreamConnection) -> None:
        """It can be used; a handshake is over."""
        ...

    def lost(self, connection: StreamConnection) -> None:
        """It is gone."""
        ...


class StreamConnection(asyncio.Protocol):
    """Passes everything on to `parser`. marks: of the classes; None where replies go back under the mark that came."""

    __slots__ = ("_clock", "_marks", "_owner", "_transport", "busy", "head_since", "parser", "sock")

    def __init__(
        self,
        sock: socket.socket,
        parser: asyncio.Protocol,
        owner: Owner,
        *,
        clock: Callable[[], float],
        marks: Marks | None = None,
    ) -> None:
        self.sock = sock
        self.parser = parser
        self.busy = False
        """Whether a request is in flight."""
        self.head_since: float | None = None
        """When the first byte came of a request that is not in flight yet, monotonic seconds."""
        self._owner = owner
        self._clock = clock
        self._marks = marks
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        state = "gone" if self._transport is None else "busy" if self.busy else "idle"
        return f"<StreamConnection {state}>"

    def begin(self) -> None:
        """Its request's head is here."""
        self.busy, self.head_since = True, None

    def end(self) -> None:
        """Its request is answered."""
        self.busy, self.head_since = False, None

    def carry(self, traffic_class: TrafficClass) -> None:
        """What it sends from now on belongs to a request of this class."""
        if self._marks is not None:
            carry(self.sock, self._marks.of(traffic_class.name))

    @property
    def rtt_s(self) -> float | None:
        """A client's smoothed round trip in seconds. A gateway in front of us knows its own."""
        return None if self._marks is None else round_trip_s(self.sock)

    @property
    def port(self) -> int:
        """Where the client has connected to; 0 for a Unix socket."""
        name = self.sock.getsockname()
        return cast(int, name[1]) if isinstance(name, tuple) else 0

    @property
    def has_left(self) -> bool:
        """Whether the client is gone, which nobody has read yet."""
        return has_left(self.sock)

    def hang_up(self) -> None:
        """Close when what is written has left."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def cut(self) -> None:
        """Close now."""
        if self._transport is None:
            return
        self._transport.abort()
        # asyncio's TLS transport cannot be aborted any more when it has been closed twice, which aiohttp does.
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def break_off(self, *, after_s: float) -> None:
        """End in the middle of a reply: what is written may take so long to leave; 0: none of it need arrive."""
        if self._transport is None:
            return
        if after_s:
            self.hang_up()
            asyncio.get_running_loop().call_later(after_s, self.cut)
        else:
            # A reply that its connection's end ends, in HTTP/1.0, must not look whole: a reset, not a FIN.
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD)
        with contextlib.suppress(OSError):  # gone already
            notice_silence(self.sock)
        self._owner.opened(self)
        self.parser.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.head_since is None and not self.busy:
            self.head_since = self._clock()
        self.parser.data_received(data)

    def eof_received(self) -> bool | None:
        return self.parser.eof_received()

    def pause_writing(self) -> None:
        self.parser.pause_writing()

    def resume_writing(self) -> None:
        self.parser.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._owner.lost(self)
        self.parser.connection_lost(exc)
