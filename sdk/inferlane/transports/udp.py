# SPDX-License-Identifier: Apache-2.0
"""`udp://`: inference datagrams in plain UDP."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from time import monotonic

from inferlane import wire
from inferlane.errors import ConnectionFailed
from inferlane.messages import EncodedReply, EncodedRequest
from inferlane.transfer import NO_COOKIE
from inferlane.transports.exchanges import Exchanges
from inferlane.transports.peer import Peer
from inferlane.transports.sockets import Address, UdpSocket

__all__ = ["Udp"]

_FIRST_REPEAT_S = 0.1
_LONGEST_REPEAT_S = 1.0


class Udp:
    """One socket; any number of requests at once."""

    def __init__(self, address: Address, *, dscp: int) -> None:
        """Open the socket. Raises OSError where there is no route."""
        self._peer = Peer(str(address))
        self._exchanges = Exchanges(self._peer, self._send, cookies=True)
        self._ping_id = secrets.randbits(64)
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket = UdpSocket(address, dscp=dscp, received=self._received, failed=self._unreachable)

    def __repr__(self) -> str:
        return f"<Udp {self._peer!r}>"

    async def connect(self) -> None:
        """Ping until somebody answers: which address lives, its cookie, its round trip. Raises ConnectionFailed."""
        ping = wire.encode(wire.Header(type=wire.Type.PING, request_id=self._ping_id, cookie=NO_COOKIE))
        repeat_s = _FIRST_REPEAT_S
        while not self._greeted.done():
            asked_at = monotonic()
            self._socket.send(ping)
            await asyncio.wait([self._greeted], timeout=repeat_s)
            # A pong that came late makes the estimate too short, which costs one repeat.
            self._exchanges.round_trip_s = monotonic() - asked_at
            repeat_s = min(repeat_s * 2, _LONGEST_REPEAT_S)
        await self._greeted

    @property
    def alive(self) -> bool:
        """Whether a new request has a chance here."""
        return self._peer.alive

    async def exchange(self, request: EncodedRequest) -> EncodedReply:
        """One request, one reply. Raises Refused or ConnectionFailed; cancelled, it tells the gateway."""
        return await self._exchanges.ask(request, max_datagram=wire.MAX_DATAGRAM)

    def close(self) -> None:
        """Close the socket; what is in flight fails."""
        self._end("the client was closed")

    def _send(self, datagrams: Sequence[bytes]) -> None:
        if self._peer.dead:
            self._end("the gateway did not answer any more")
        for datagram in datagrams:
            self._socket.send(datagram)

    def _received(self, packets: list[bytes]) -> None:
        self._peer.heard()
        for packet in packets:
            if self._greeted.done():
                self._exchanges.received(packet)
            else:
                self._greet(packet)

    def _greet(self, packet: bytes) -> None:
        try:
            header, _ = wire.decode(packet)
        except wire.WireError:
            return  # noise; only an answer to our ping shows a gateway
        if header.request_id == self._ping_id and header.type in (wire.Type.CHALLENGE, wire.Type.PONG):
            self._exchanges.cookie = header.cookie
            self._greeted.set_result(None)

    def _unreachable(self, error: OSError) -> None:
        self._end(f"nothing answers there ({error.strerror})")

    def _end(self, why: str) -> None:
        if self._peer.end(why):
            self._socket.close()
            if not self._greeted.done():
                self._greeted.set_exception(ConnectionFailed(str(self._peer.error)))
