# SPDX-License-Identifier: Apache-2.0
"""`quic+datagram://`: inference datagrams inside QUIC DATAGRAM frames (RFC 9221) under ALPN inferlane/1."""

from __future__ import annotations

from collections.abc import Sequence

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import DatagramFrameReceived, QuicEvent

from inferlane.errors import ConnectionFailed
from inferlane.messages import EncodedReply, EncodedRequest
from inferlane.transports.exchanges import Exchanges
from inferlane.transports.link import QuicLink
from inferlane.transports.sockets import Address

__all__ = ["QuicDatagram"]


class QuicDatagram:
    """One connection for datagrams; any number of requests at once."""

    def __init__(self, address: Address, configuration: QuicConfiguration, *, dscp: int) -> None:
        self._link = QuicLink(address, configuration, dscp=dscp, on_event=self._on_event)
        self._exchanges = Exchanges(self._link.peer, self._send, cookies=False)

    def __repr__(self) -> str:
        return f"<QuicDatagram {self._link!r}>"

    async def connect(self) -> None:
        """Shake hands. Raises ConnectionFailed."""
        await self._link.connect()
        if not self._link.quic.datagram_capacity:
            raise ConnectionFailed(f"{self._link.peer.name}: the gateway takes no DATAGRAM; use quic:// or https://")

    @property
    def alive(self) -> bool:
        """Whether a new request has a chance here."""
        return self._link.peer.alive

    async def exchange(self, request: EncodedRequest) -> EncodedReply:
        """One request, one reply. Raises Refused or ConnectionFailed; cancelled, it tells the gateway."""
        self._exchanges.round_trip_s = self._link.quic.round_trip_s
        return await self._exchanges.ask(request, max_datagram=self._link.quic.datagram_capacity)

    def close(self) -> None:
        """End the connection; what is in flight fails."""
        self._link.close(0, "the client was closed")

    def _send(self, datagrams: Sequence[bytes]) -> None:
        for datagram in datagrams:
            self._link.quic.send_datagram_frame(datagram)
        if datagrams:
            self._link.flush_soon()

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, DatagramFrameReceived):
            self._exchanges.received(event.data)
