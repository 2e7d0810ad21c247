# SPDX-License-Identifier: Apache-2.0
"""QUIC on one UDP socket: finds the connection of a datagram, pumps its events, flushes once a wake-up.

aioquic's own server sends after every event; one flush a connection and wake-up instead halved the CPU per
request at 32 in flight (the profile is in benchmarks/README.md).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Protocol

import structlog

from proxy.engine.configuration import QuicConfiguration
from proxy.engine.connection import (
    Connection,
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
)
from proxy.engine.first_look import FirstLook, first_look, version_negotiation
from proxy.listeners.alarms import Alarms
from proxy.listeners.marks import Marks
from proxy.listeners.udp import Address
from proxy.listeners.vigil import Vigil
from qos.connection_mark import ConnectionMark
from qos.marking import Mark
from qos.traffic_class import TrafficClass

__all__ = ["WRITE_AHEAD", "Peer", "QuicListener", "Send", "Session", "SessionFor"]

WRITE_AHEAD = 256 * 1024
"""Unacknowledged reply bytes of one stream before its backend is made to wait."""
MOST_HANDSHAKES = 1024
"""At once on one socket. A datagram from a forged address is enough to begin one, and each keeps 100 KiB."""
HANDSHAKE_S = 10.0
"""How long one may take, when another wants its place. As on TCP."""
_NO_ERROR = 0x100  # H3_NO_ERROR (RFC 9114 section 8.1); under inferlane/1 the same number means the same
_INTERNAL_ERROR = 0x1  # RFC 9000 section 20.1
_log = structlog.get_logger("inferlane.quic")


class Session(Protocol):
    """What an ALPN makes of a connection's events."""

    def handle(self, event: QuicEvent) -> None:
        """One event of the connection."""
        ...

    def drain(self) -> None:
        """Take no new request; finish those that are here."""
        ...

    def closed(self) -> None:
        """The connection is gone: cancel what still works for it."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        ...


class Peer:
    """One connection: aioquic's state, the session its ALPN chose, and who waits for room to write."""

    def __init__(self, listener: QuicListener, quic: Connection, address: Address, dscp: int) -> None:
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

    def ask(self) -> None:
        """Have the client say that it is still there: whatever gets a PING acknowledges it (RFC 9000 section 19.2)."""
        self.quic.send_ping(0)
        self.touch()

    def touch(self) -> None:
        """Something was written: flush before the loop sleeps again."""
        self.listener.schedule_flush(self)

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
        """Hand every event that aioquic has to where it belongs."""
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, ConnectionIdIssued):
                self.listener.learn(event.connection_id, self)
            elif isinstance(event, ConnectionIdRetired):
                self.listener.forget(event.connection_id, self)
            elif isinstance(event, ProtocolNegotiated):
                self.session = self.listener.session_for(self, event.alpn_protocol or "")
            elif isinstance(event, ConnectionTerminated):
                self.listener.remove(self)
            elif isinstance(event, HandshakeCompleted):
                self.listener.completed(self)
            elif self.session is not None:
                self.session.handle(event)
        if self.quic.ending and self.session is not None:
            # ConnectionTerminated comes only after the draining period, three probe timeouts later.
            session, self.session = self.session, None
            session.closed()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def ring(self, now: float) -> None:
        """Loss detection, acknowledgement delay, pacing or idleness came due."""
        self.listener.guard(self, partial(self._on_timer, now))

    def _on_timer(self, now: float) -> None:
        self.quic.handle_timer(now)
        self.pump()
        self.touch()


SessionFor = Callable[[Peer, str], Session]
Send = Callable[[Sequence[bytes], Address, Mark], None]
"""Datagrams to one address under one mark, in this order."""


class QuicListener:
    """Every connection of one socket, by connection id. name: the listener's, for its mark."""

    def __init__(  # noqa: PLR0913  one line each at its single caller
        self,
        configuration: QuicConfiguration,
        session_for: SessionFor,
        *,
        alarms: Alarms,
        clock: Callable[[], float],
        datagrams: bool,
        marks: Marks,
        name: str,
    ) -> None:
        self.session_for = session_for
        self.marks = marks
        self._name = name
        self.counts: Counter[str] = Counter()
        self._configuration = configuration
        self._datagrams = datagrams
        self._send: Send = lambda datagrams, address, mark: None
        self._alarms = alarms
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._by_cid: dict[bytes, Peer] = {}
        self._peers: set[Peer] = set()
        self._opening: dict[Peer, float] = {}
        """Since when a handshake goes on, the oldest first."""
        self._arrived: dict[Peer, None] = {}
        self._dirty: dict[Peer, None] = {}
        self._flush_scheduled = False
        self._draining = False
        self._vigil = Vigil(self._peers, self._gone, clock=clock)

    def __repr__(self) -> str:
        return f"<QuicListener {len(self._peers)} connections>"

    def __len__(self) -> int:
        return len(self._peers)

    def attach(self, send: Send) -> None:
        """Where datagrams go out."""
        self._send = send

    def receive(self, datagram: bytes, address: Address, ds_field: int) -> None:
        """One datagram with the QUIC bit; its events wait for the end of the burst."""
        # Long and short headers of known connections need no parse: the id is where it always is.
        cid = datagram[6 : 6 + datagram[5]] if datagram[0] & 0x80 and len(datagram) > 6 else datagram[1:9]
        peer = self._by_cid.get(cid) or self._accept(datagram, address)
        if peer is None:
            return
        peer.dscp = ds_field >> 2
        peer.heard = self._clock()
        self._arrived[peer] = None
        self.guard(peer, partial(peer.quic.receive_datagram, datagram, address, peer.heard))

    def burst_ended(self) -> None:
        """Every datagram of this wake-up is in: let events run, then flush behind the tasks they start."""
        arrived, self._arrived = self._arrived, {}
        for peer in arrived:
            if peer in self._peers:  # else it gave up its place since
                self.guard(peer, peer.pump)
                self.schedule_flush(peer)

    def schedule_flush(self, peer: Peer) -> None:
        """Flush `peer` once, after everything that is ready to run now."""
        self._dirty[peer] = None
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def learn(self, cid: bytes, peer: Peer) -> None:
        """One more id of this connection."""
        self._by_cid[cid] = peer
        peer.cids.add(cid)

    def forget(self, cid: bytes, peer: Peer) -> None:
        """The peer retired an id."""
        self._by_cid.pop(cid, None)
        peer.cids.discard(cid)

    def completed(self, peer: Peer) -> None:
        """Its handshake is over, and its address proved."""
        self.counts["handshakes"] += 1
        self._opening.pop(peer, None)

    def remove(self, peer: Peer) -> None:
        """The connection has ended."""
        self._opening.pop(peer, None)
        for cid in peer.cids:
            self._by_cid.pop(cid, None)
        peer.cids.clear()
        self._peers.discard(peer)
        self._alarms.set(peer, None)
        session, peer.session = peer.session, None
        if session is not None:
            session.closed()

    def drain(self) -> None:
        """Refuse new connections, tell the old ones, and close each one that has nothing in flight."""
        self._draining = True
        for peer in list(self._peers):
            if peer.session is not None:
                peer.session.drain()
            self.schedule_flush(peer)

    @property
    def idle(self) -> bool:
        """Whether no connection has a request in flight, or a reply that its client has not acknowledged.

        A client that is gone without a goodbye acknowledges nothing, and is not waited for.
        """
        return all(
            (peer.session is None or peer.session.idle) and (peer.quic.all_acknowledged or peer.quic.silent)
            for peer in self._peers
        )

    def close(self) -> None:
        """Say goodbye on every connection, now."""
        self._vigil.close()
        for peer in list(self._peers):
            peer.quic.close(error_code=_NO_ERROR, reason_phrase="shutting down")
            self._transmit(peer, self._clock())
            self.remove(peer)

    def _accept(self, datagram: bytes, address: Address) -> Peer | None:
        versions = self._configuration.supported_versions
        cid, look = first_look(datagram, versions)
        if look is FirstLook.UNKNOWN_VERSION:
            self.counts["version_negotiations"] += 1
            self._send([version_negotiation(datagram, versions)], address, self.marks.at(self._name))
            return None
        if look is not FirstLook.INITIAL or self._draining:
            self.counts["stray" if look is FirstLook.STRAY else "draining"] += 1
            return None
        now = self._clock()
        if not self._may_open(now):
            self.counts["too_many_handshakes"] += 1
            return None
        quic = Connection(self._configuration, cid, datagrams=self._datagrams)
        peer = Peer(self, quic, address, 0)
        self._peers.add(peer)
        self._vigil.begin()
        self._opening[peer] = now
        self.learn(cid, peer)
        self.learn(quic.host_cid, peer)
        return peer

    def _may_open(self, now: float) -> bool:
        """Whether there is a place for one more handshake. One that takes too long gives its own up, unheard."""
        if len(self._opening) < MOST_HANDSHAKES:
            return True
        oldest, since = next(iter(self._opening.items()))
        if now - since < HANDSHAKE_S:
            return False
        self.counts["slow_handshake"] += 1
        self.remove(oldest)
        return True

    def guard(self, peer: Peer, step: Callable[[], None]) -> None:
        """Run one connection's step. Its fault, a bug here or in aioquic, must not take the socket's others along."""
        try:
            step()
        except Exception:  # noqa: BLE001  logged with its trace, and the connection ends
            self.counts["failed"] += 1
            _log.exception("connection_failed", peer=repr(peer))
            self._hang_up(peer)

    def _gone(self, peer: Peer) -> None:
        """Nobody answers any more: what works for this client is cancelled."""
        self.counts["vanished"] += 1
        self._hang_up(peer)

    def _flush(self) -> None:
        self._flush_scheduled = False
        dirty, self._dirty = self._dirty, {}
        now = self._clock()
        for peer in dirty:
            if peer in self._peers:
                self.guard(peer, partial(self._flush_one, peer, now))

    def _hang_up(self, peer: Peer) -> None:
        try:
            peer.quic.close(error_code=_INTERNAL_ERROR, reason_phrase="internal error")
            self._transmit(peer, self._clock())
        except Exception:  # noqa: BLE001  too broken to say goodbye: the client's idle timeout says it
            _log.exception("goodbye_failed", peer=repr(peer))
        self.remove(peer)

    def _flush_one(self, peer: Peer, now: float) -> None:
        if not peer.quic.quiet(now):
            self._transmit(peer, now)
        self._alarms.set(peer, peer.quic.get_timer())

    def _transmit(self, peer: Peer, now: float) -> None:
        mark = self.marks.connection(self._name, peer.mark)
        # One address nearly always: another only while a path is validated (RFC 9000 section 8.2).
        for address, group in groupby(peer.quic.datagrams_to_send(now), key=itemgetter(1)):
            self._send([datagram for datagram, _ in group], address, mark)
