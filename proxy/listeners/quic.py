# SPDX-License-Identifier: Apache-2.0
"""QUIC on one UDP socket: finds the connection of a datagram, pumps its events, flushes once a wake-up.

aioquic's own server sends after every event; one flush a connection and wake-up instead halved the CPU per
request at 32 in flight (the profile is in benchmarks/README.md).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from proxy.keys import Keys
from proxy.listeners.alarms import Alarms
from proxy.listeners.marks import Marks
from proxy.listeners.peer import WRITE_AHEAD, Peer, Session, SessionFor
from proxy.listeners.retirement import Retirement
from proxy.listeners.strangers import Crowd, Newcomer, Strangers
from proxy.listeners.udp import Address
from proxy.listeners.vigil import Vigil
from proxy.quic.configuration import CID_LENGTH, QuicConfiguration
from proxy.quic.connection import Connection
from proxy.quic.connection_ids import ConnectionIds
from proxy.quic.identity import Identity
from proxy.quic.retry import Retries
from qos.marking import Mark

__all__ = ["WRITE_AHEAD", "Peer", "QuicListener", "Send", "Session", "SessionFor"]

MOST_HANDSHAKES = 1024
"""At once on one socket. A datagram from a forged address is enough to begin one, and each keeps 100 KiB."""
HANDSHAKE_S = 10.0
"""How long one may take, when another wants its place. As on TCP."""
_SHORT_ID = slice(1, 1 + CID_LENGTH)
_NO_ERROR = 0x100  # H3_NO_ERROR (RFC 9114 section 8.1); under inferlane/1 the same number means the same
_INTERNAL_ERROR = 0x1  # RFC 9000 section 20.1
_log = structlog.get_logger("inferlane.quic")


Send = Callable[[Sequence[bytes], Address, Mark], None]
"""Datagrams to one address under one mark, in this order."""


class QuicListener:
    """Every connection of one socket, by connection id. name: the listener's, for its mark.

    ids: which worker this is; keys: what the workers share. Without them it is the only one, and its clients are
    forgotten when it ends.
    """

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
        ids: ConnectionIds | None = None,
        keys: Keys | None = None,
    ) -> None:
        keys = keys or Keys.fresh()
        self.session_for = session_for
        self.marks = marks
        self._name = name
        self.counts: Counter[str] = Counter()
        self.resumed = 0
        """Of the handshakes, those that a ticket spared the certificate."""
        self._configuration = configuration
        self._identity = Identity(ids or ConnectionIds(key=keys.steering), keys, configuration)
        self._strangers = Strangers(configuration, self._identity, Retries(keys.retry), self.counts, self._say)
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
        self._retirement: Retirement | None = None
        self._vigil = Vigil(self._peers, self._gone, clock=clock)

    def __repr__(self) -> str:
        return f"<QuicListener {len(self._peers)} connections>"

    def __len__(self) -> int:
        return len(self._peers)

    def attach(self, send: Send) -> None:
        """Where datagrams go out."""
        self._send = send

    @property
    def siblings(self) -> frozenset[int]:
        """Places of other workers that live. What is theirs and comes here is dropped; a reset would end it."""
        return self._strangers.siblings

    @siblings.setter
    def siblings(self, places: frozenset[int]) -> None:
        self._strangers.siblings = places

    def receive(self, datagram: bytes, address: Address, ds_field: int) -> None:
        """One datagram with the QUIC bit; its events wait for the end of the burst."""
        # Long and short headers of known connections need no parse: the id is where it always is.
        cid = datagram[6 : 6 + datagram[5]] if datagram[0] & 0x80 and len(datagram) > 6 else datagram[_SHORT_ID]
        now = self._clock()
        peer = self._by_cid.get(cid) or self._accept(datagram, address, now)
        if peer is None:
            return
        peer.dscp = ds_field >> 2
        peer.heard = now
        self._arrived[peer] = None
        try:
            peer.quic.receive_datagram(datagram, address, now)
        except Exception:  # noqa: BLE001  logged there; the socket's other connections go on
            self.failed(peer)

    def burst_ended(self) -> None:
        """Every datagram of this wake-up is in: let events run, then flush behind the tasks they start."""
        if not self._arrived:
            return
        arrived, self._arrived = self._arrived, {}
        for peer in arrived:
            if peer not in self._peers:  # it gave up its place since
                continue
            try:
                peer.pump()
            except Exception:  # noqa: BLE001
                self.failed(peer)
            else:
                self.schedule_flush(peer)

    def schedule_flush(self, peer: Peer) -> None:
        """Flush `peer` once, after everything that is ready to run now."""
        self._dirty[peer] = None
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def flush(self, peer: Peer) -> None:
        """Flush `peer` now, unless that is about to happen."""
        if peer not in self._dirty:
            self._visit(peer, self._clock())

    def learn(self, cid: bytes, peer: Peer) -> None:
        """One more id of this connection."""
        self._by_cid[cid] = peer
        peer.cids.add(cid)

    def forget(self, cid: bytes, peer: Peer) -> None:
        """The peer retired an id."""
        self._by_cid.pop(cid, None)
        peer.cids.discard(cid)

    def completed(self, peer: Peer, *, resumed: bool) -> None:
        """Its handshake is over, and its address proved."""
        self.counts["handshakes"] += 1
        self.resumed += resumed
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
        peer.quic.let_go()

    def retire(self) -> None:
        """Others get what is new from now on: have the clients move there, and serve them until they have."""
        if self._retirement is None:
            self._retirement = Retirement(self._peers, self._part, clock=self._clock)

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
        return all(peer.settled for peer in self._peers)

    def close(self) -> None:
        """Say goodbye on every connection, now."""
        self._vigil.close()
        if self._retirement is not None:
            self._retirement.end()
        for peer in list(self._peers):
            peer.quic.close(error_code=_NO_ERROR, reason_phrase="shutting down")
            self._transmit(peer, self._clock())
            self.remove(peer)

    def _accept(self, datagram: bytes, address: Address, now: float) -> Peer | None:
        crowd = Crowd(len(self._opening), len(self._peers), self._draining)
        newcomer = self._strangers.meet(datagram, address, now, crowd)
        if newcomer is None:
            return None
        if not self._may_open(now):
            self.counts["too_many_handshakes"] += 1
            return None
        return self._open(newcomer, address, now)

    def _open(self, newcomer: Newcomer, address: Address, now: float) -> Peer:
        quic = Connection(
            self._configuration,
            newcomer.original_cid,
            datagrams=self._datagrams,
            identity=self._identity,
            retry_source_cid=newcomer.retry_cid,
            retried_from=None if newcomer.retry_cid is None else address,
        )
        peer = Peer(self, quic, address, 0)
        self._peers.add(peer)
        self._vigil.begin()
        self._opening[peer] = now
        self.learn(newcomer.cid, peer)
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

    def failed(self, peer: Peer) -> None:
        """Inside an `except`: a bug here or in aioquic ends one connection, and the socket's others go on."""
        self.counts["failed"] += 1
        _log.exception("connection_failed", peer=repr(peer))
        self._hang_up(peer)

    def _part(self, peer: Peer) -> None:
        """Say goodbye to one that has nothing in flight."""
        code = _NO_ERROR
        if peer.session is not None:
            peer.session.drain()
            code = peer.session.goodbye
        peer.quic.close(error_code=code, reason_phrase="another process serves here now")
        self._transmit(peer, self._clock())
        self.remove(peer)

    def _gone(self, peer: Peer) -> None:
        """Nobody answers any more: what works for this client is cancelled."""
        self.counts["vanished"] += 1
        self._hang_up(peer)

    def _flush(self) -> None:
        self._flush_scheduled = False
        dirty, self._dirty = self._dirty, {}
        now = self._clock()
        for peer in dirty:
            self._visit(peer, now)

    def _visit(self, peer: Peer, now: float) -> None:
        """Send what there is of one connection, and see to its timer."""
        if peer not in self._peers:
            return
        quic = peer.quic
        try:
            if not quic.quiet(now):
                self._transmit(peer, now)
            self._alarms.set(peer, quic.get_timer())
        except Exception:  # noqa: BLE001
            self.failed(peer)

    def _hang_up(self, peer: Peer) -> None:
        try:
            peer.quic.close(error_code=_INTERNAL_ERROR, reason_phrase="internal error")
            self._transmit(peer, self._clock())
        except Exception:  # noqa: BLE001  too broken to say goodbye: the client's idle timeout says it
            _log.exception("goodbye_failed", peer=repr(peer))
        self.remove(peer)

    def _transmit(self, peer: Peer, now: float) -> None:
        written = peer.quic.datagrams_to_send(now)
        if not written:
            return
        mark = self.marks.connection(self._name, peer.mark)
        address = written[0][1]
        if len(written) == 1 or all(each[1] is address for each in written):
            self._send([each[0] for each in written], address, mark)
            return
        # Two addresses, while a path is validated (RFC 9000 section 8.2).
        for datagram, address in written:
            self._send([datagram], address, mark)

    def _say(self, datagram: bytes, address: Address) -> None:
        self._send([datagram], address, self.marks.at(self._name))
