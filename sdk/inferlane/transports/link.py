# SPDX-License-Identifier: Apache-2.0
"""One QUIC connection over its own socket: packets in bursts, one transmission per wake-up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, QuicEvent

from inferlane.errors import ConnectionFailed
from inferlane.transports.peer import Peer
from inferlane.transports.quic import ClientConnection, moved, why_ended
from inferlane.transports.silence import CHECK_S
from inferlane.transports.sockets import Address, UdpSocket

__all__ = ["QuicLink"]


class QuicLink:
    """The shell around a sans-IO connection.

    on_event: gets every event but the connection's own beginning and end.
    """

    def __init__(
        self, address: Address, configuration: QuicConfiguration, *, dscp: int, on_event: Callable[[QuicEvent], None]
    ) -> None:
        """Open the socket. Raises OSError where there is no route."""
        self.quic = ClientConnection(configuration=configuration)
        self.peer = Peer(str(address))
        self._sockaddr = address.sockaddr
        (self._alpn,) = configuration.alpn_protocols or ("",)
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._begun = False
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._check: asyncio.TimerHandle | None = None
        self._socket = UdpSocket(address, dscp=dscp, received=self._received, failed=self._unreachable)

    def __repr__(self) -> str:
        return f"<QuicLink {self._alpn} {self.peer!r}>"

    async def connect(self) -> None:
        """Shake hands. Raises ConnectionFailed; waits as long as its caller lets it."""
        self._begun = True
        self.quic.connect(self._sockaddr, now=monotonic())
        self._flush()
        await self._connected
        self._check = self._loop.call_later(CHECK_S, self._check_peer)

    def flush_soon(self) -> None:
        """Send what the connection has to send, once everything that can run now has run."""
        if self._flush_handle is None and self.peer.error is None:
            self._flush_handle = self._loop.call_soon(self._flush)

    def abandon(self, stream_id: int, error_code: int) -> None:
        """Tell the peer that nobody wants this stream any more."""
        self.quic.abandon(stream_id, error_code)
        self.flush_soon()

    def close(self, error_code: int, why: str) -> None:
        """End the connection and tell the peer; requests in flight fail."""
        if self._begun and self.peer.error is None:
            self.quic.close(error_code=error_code, reason_phrase=why)
            self._flush()
        self._end(why)

    def _received(self, packets: list[bytes]) -> None:
        now = monotonic()
        self.peer.heard()
        for packet in packets:
            self.quic.receive_datagram(packet, self._sockaddr, now=now)
        self._progress()

    def _progress(self) -> None:
        while self.peer.error is None and (event := self.quic.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                self._greeted(event)
            elif not isinstance(event, ConnectionTerminated):
                self._on_event(event)
        if self.peer.error is None:
            self._flush()
            if self.quic.ending is not None:
                self._end(why_ended(self.quic.ending, self._alpn), moved=moved(self.quic.ending))

    def _greeted(self, event: HandshakeCompleted) -> None:
        if event.alpn_protocol != self._alpn:
            self.close(0, f"the peer does not speak {self._alpn}")
        elif not self._connected.done():
            self._connected.set_result(None)

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        for packet, sockaddr in self.quic.datagrams_to_send(now=monotonic()):
            if sockaddr == self._sockaddr:  # else: a probe of an address that this socket is not connected to
                self._socket.send(packet)
        self._arm(self.quic.get_timer())

    def _arm(self, timer_at: float | None) -> None:
        if timer_at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if timer_at is None else self._loop.call_at(timer_at, self._on_timer)
        self._timer_at = timer_at

    def _on_timer(self) -> None:
        # An event loop's clock may be coarser than ours and wake us a little early.
        now = max(self._timer_at or 0.0, monotonic())
        self._timer = self._timer_at = None
        self.quic.handle_timer(now=now)
        self._progress()

    def _check_peer(self) -> None:
        if self.peer.dead:
            self.close(0, "the gateway did not answer any more")
            return
        if self.peer.needs_ping:
            self.quic.send_ping(0)
            self.peer.asked()
            self.flush_soon()
        self._check = self._loop.call_later(CHECK_S, self._check_peer)

    def _unreachable(self, error: OSError) -> None:
        self._end(f"nothing answers there ({error.strerror})")

    def _end(self, why: str, *, moved: bool = False) -> None:
        if not self.peer.end(why, moved=moved):
            return
        self._socket.close()
        for handle in (self._flush_handle, self._timer, self._check):
            if handle is not None:
                handle.cancel()
        if not self._connected.done():
            self._connected.set_exception(ConnectionFailed(str(self.peer.error)))
