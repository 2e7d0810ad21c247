# SPDX-License-Identifier: Apache-2.0
"""One QUIC connection as the gateway sees it: the engine's state, its session, and who waits for room to write."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from proxy.listeners.marks import Marks
from proxy.listeners.udp import Address
from proxy.quic.connection import (
    Connection,
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
)
from qos.connection_mark import ConnectionMark
from qos.traffic_class import TrafficClass

__all__ = ["WRITE_AHEAD", "Home", "Peer", "Session", "SessionFor"]

_CANCELLED = 0x10C  # H3_REQUEST_CANCELLED (RFC 9114 section 8.1); under inferlane/1 the same number means the same
WRITE_AHEAD = 256 * 1024
"""Unacknowledged reply bytes of one stream before its backend is made to wait."""


class Session(Protocol):
    """What an ALPN makes of a connection's events."""

    goodbye: int
    """The error code of a connection that is closed because nothing is in flight and others serve."""

    def handle(self, event: QuicEvent) -> None:
        """One event of the connection."""
        ...

    def drain(self) -> None:
        """Take no new request; finish those that are here."""
        ...

    def retire(self) -> None:
        """Others take new connections: have the client move to one, and serve it until then. May be called again."""
        ...

    def closed(self) -> None:
        """The connection is gone: cancel what still works for it."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        ...


class Home(Protocol):
    """The listener, as far as one of its connections needs it."""

    marks: Marks
    session_for: SessionFor
    counts: Counter[str]

    def learn(self, cid: bytes, peer: Peer) -> None:
        """One more id of this connection."""
        ...

    def forget(self, cid: bytes, peer: Peer) -> None:
        """One less."""
        ...

    def completed(self, peer: Peer, *, resumed: bool) -> None:
        """Its handshake is over."""
        ...

    def remove(self, peer: Peer) -> None:
        """It has ended."""
        ...

    def schedule_flush(self, peer: Peer) -> None:
        """Flush it before the loop sleeps again."""
        ...

    def flush(self, peer: Peer) -> None:
        """Flush it now, unless that is about to happen anyway."""
        ...

    def failed(self, peer: Peer) -> None:
        """An exception came out of it: log and end it."""
        ...


class Peer:
    """One connection: the engine's state, the session its ALPN chose, and who waits for room to write."""

    def __init__(self, listener: Home, quic: Connection, address: Address, dscp: int) -> None:
        self.listener = listener
        self.quic = quic
        self.session: Session | None = None
        self._first_address = address
        self.dscp = dscp
        """DSCP of the newest datagram: a client may re-mark its connection."""
        self.mark = ConnectionMark()
        """Of everything that it sends."""
        self.cids: set[bytes] = set()
        self.heard = 0.0
        """When its newest datagram came, monotonic seconds."""
        self._room: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.address[0]}:{self.address[1]} {self.session!r}>"

    @property
    def address(self) -> Address:
        """Where the client is. It may move (RFC 9000 section 9), but until the new path is validated the address may be
        forged, even by the client itself, to be taken for somebody whom we trust."""
        return self.quic.validated_address or self._first_address

    @property
    def busy(self) -> bool:
        """Whether something works for this client."""
        return self.session is not None and not self.session.idle

    @property
    def settled(self) -> bool:
        """Whether nothing is in flight and the client has acknowledged all; one that is gone never will."""
        return not self.busy and (self.quic.all_acknowledged or self.quic.silent)

    @property
    def speaks(self) -> bool:
        """Whether it has a session, which it gets with its handshake."""
        return self.session is not None

    def retire(self) -> None:
        """Have the client move to another connection."""
        if self.session is not None:
            self.session.retire()
            self.touch()

    def ask(self) -> None:
        """Have the client say that it is still there: whatever gets a PING acknowledges it (RFC 9000 section 19.2)."""
        self.quic.send_ping(0)
        self.touch()

    def let_go_of_untaken(self, now: float) -> None:
        """Break off whole replies that the client does not take: nothing else would ever end them."""
        broken_off = self.quic.let_go_of_untaken(now, _CANCELLED)
        if broken_off:
            self.listener.counts["untaken"] += broken_off
            self.touch()

    def touch(self) -> None:
        """Something was written: flush before the loop sleeps again."""
        self.listener.schedule_flush(self)

    def flush(self) -> None:
        """Something was written that nothing will go along with: flush now."""
        self.listener.flush(self)

    def consume(self, stream_id: int, count: int) -> None:
        """The application took bytes of a stream; a due window frame goes out with the next flush."""
        if self.quic.consume(stream_id, count):
            self.touch()

    def judged(self, traffic_class: TrafficClass) -> None:
        """One of its requests got its class."""
        self.listener.marks.judged(self.mark, traffic_class)

    def polices(self, class_name: str, count: int) -> bool:
        """Whether a reply of this class has to ask for admission. A long one that need not yet is written ahead no
        further than others: else all of it would ride the mark of a request that comes after it."""
        marks = self.listener.marks
        if count > WRITE_AHEAD and marks.may_police(self.mark, class_name):
            return True
        return marks.polices(self.mark, class_name)

    async def admit(self, class_name: str, count: int) -> None:
        """Wait until so many reply bytes of a class may ride the connection's mark. The caller owns the deadline."""
        await self.listener.marks.admit(self.mark, class_name, count)

    def spares(self, class_name: str, count: int) -> bool:
        """Whether so many reply bytes of a class, which do not wait, may ride the connection's mark now."""
        return self.listener.marks.spares(self.mark, class_name, count)

    async def room(self, stream_id: int, most: int) -> None:
        """Wait until at most `most` bytes of a stream are unacknowledged. The caller owns the deadline."""
        while self.quic.buffered(stream_id) > most and self.session is not None:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def pump(self) -> None:
        """Hand every event that the engine has to where it belongs."""
        quic = self.quic
        while (event := quic.next_event()) is not None:
            turn = _TURNS.get(type(event))
            if turn is not None:
                turn(self, event)
            elif self.session is not None:
                self.session.handle(event)
        if self.session is not None and quic.ending:
            # ConnectionTerminated comes only after the draining period, three probe timeouts later.
            session, self.session = self.session, None
            session.closed()
            quic.let_go()
        if self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None

    def ring(self, now: float) -> None:
        """Loss detection, acknowledgement delay, pacing or idleness came due."""
        try:
            self.quic.handle_timer(now)
            self.pump()
        except Exception:  # noqa: BLE001  one connection's fault, which the listener logs, must not stop all timers
            self.listener.failed(self)
        else:
            self.touch()

    def _negotiated(self, event: ProtocolNegotiated) -> None:
        self.session = self.listener.session_for(self, event.alpn_protocol or "")


SessionFor = Callable[[Peer, str], Session]

# By type: one look-up an event, for most events are none of these.
_TURNS: dict[type[QuicEvent], Callable[[Peer, Any], None]] = {
    ConnectionIdIssued: lambda peer, event: peer.listener.learn(event.connection_id, peer),
    ConnectionIdRetired: lambda peer, event: peer.listener.forget(event.connection_id, peer),
    ProtocolNegotiated: Peer._negotiated,
    ConnectionTerminated: lambda peer, _: peer.listener.remove(peer),
    HandshakeCompleted: lambda peer, event: peer.listener.completed(peer, resumed=event.session_resumed),
}
