# SPDX-License-Identifier: Apache-2.0
"""The server's half of the inference datagram protocol (docs/wire.md): reassembly, duplicates, kept replies.

Sans-IO: datagrams and `now` in, outcomes out. One instance serves one UDP listener, where cookies prove
addresses, or one QUIC connection, where the handshake has. Every buffer here has a bound, and what is over a
bound is dropped and named, never stored.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from inferlane.reassembly import Reassembly, whole
from inferlane.wire import MAX_DATAGRAM, Header, Type, WireError, decode, encode, fragments
from proxy.protocols.cookies import CookieJar
from proxy.timers import TimerHeap

__all__ = ["Cancelled", "Dropped", "InferenceServer", "Message", "Outcome", "Send"]

MAX_EXCHANGES = 65_536
"""Unanswered and kept ones together; the oldest kept reply makes room."""
MAX_UNANSWERED_A_PEER = 1_024
MAX_REASSEMBLY_BYTES = 32 << 20
MAX_KEPT_BYTES = 16 << 20
SHORTEST_KEPT_S = 1.0
LONGEST_KEPT_S = 30.0

Key = tuple[Hashable, int]
"""Peer and request id."""


@dataclass(frozen=True, slots=True)
class Send:
    """Datagrams to send back to the peer."""

    datagrams: list[bytes]
    class_name: str | None = None
    """The class that the request was served in; None: it has none yet."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole request: answer it with `answer(key, ...)` or `refuse(key, ...)`."""

    key: Key
    header: Header
    body: bytes
    began: float
    """When its first fragment came: from then on its remaining time runs."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The peer does not want this answer any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing is done and nothing is stored; reason labels a counter."""

    reason: str


Outcome = Send | Message | Cancelled | Dropped


@dataclass(slots=True)
class _Exchange:
    """One request between its first fragment and the end of its kept reply."""

    began: float
    first: Header
    reassembly: Reassembly | None
    size: int
    reply: list[bytes] = field(default_factory=list)
    class_name: str | None = None

    @property
    def working(self) -> bool:
        return self.reassembly is None and not self.reply


class InferenceServer:
    """Exchanges by (peer, request id).

    cookies: proves addresses; None inside QUIC. max_datagram: bytes that one datagram back may have.
    """

    def __init__(self, *, cookies: CookieJar | None, max_datagram: int = MAX_DATAGRAM) -> None:
        self._cookies = cookies
        self._max_datagram = max_datagram
        self._exchanges: dict[Key, _Exchange] = {}
        self._expiry: TimerHeap[Key] = TimerHeap()
        self._unanswered: dict[Hashable, int] = {}
        self._kept: dict[Key, None] = {}  # answered exchanges, oldest answer first
        self._reassembly_bytes = 0
        self._kept_bytes = 0

    def __repr__(self) -> str:
        return (
            f"<InferenceServer {len(self._exchanges)} exchanges ({len(self._kept)} answered), "
            f"{self._reassembly_bytes} bytes arriving, {self._kept_bytes} bytes kept>"
        )

    def receive(self, datagram: bytes, peer: Hashable, now: float) -> Outcome:
        """One datagram from a peer. Never raises."""
        self._expire(now)
        try:
            header, offset = decode(datagram)
        except WireError as error:
            return Dropped(f"malformed_{error.rule}")
        if header.type >= Type.REPLY:
            return Dropped("reply_to_server")
        if self._cookies is not None and not self._cookies.valid(header.cookie, peer, now):
            return self._challenge(header, datagram, peer, now)
        if header.type is Type.PING:
            return Send([encode(Header(type=Type.PONG, request_id=header.request_id))])
        key = (peer, header.request_id)
        exchange = self._exchanges.get(key)
        if header.type is Type.CANCEL:
            return self._cancel(key, exchange)
        if header.type is Type.RECEIVED:
            return self._resend_missing(exchange, header)
        if exchange is None:
            return self._begin(key, header, datagram[offset:], now)
        return self._continue(key, exchange, header, datagram[offset:])

    def answer(self, key: Key, header: Header, body: bytes) -> list[bytes]:
        """The datagrams of a reply, kept for repeats. Refused(USE_STREAM) when it needs too many."""
        return self._keep(key, header, fragments(header, body, max_datagram=self._max_datagram))

    def refuse(self, key: Key, header: Header, problem: bytes) -> list[bytes]:
        """The one datagram of a refusal, its document left out where it does not fit; kept like a reply."""
        fits = len(encode(header)) + len(problem) <= self._max_datagram
        return self._keep(key, header, fragments(header, problem if fits else b"", max_datagram=self._max_datagram))

    def forget(self, key: Key) -> None:
        """The request ended without an answer (its client left): a repeat starts anew."""
        exchange = self._exchanges.get(key)
        if exchange is not None and exchange.working:
            self._remove(key)

    def _challenge(self, header: Header, datagram: bytes, peer: Hashable, now: float) -> Outcome:
        assert self._cookies is not None
        if header.type is not Type.PING and (header.type is not Type.REQUEST or header.index != 0):
            return Dropped("no_cookie")
        challenge = encode(
            Header(type=Type.CHALLENGE, request_id=header.request_id, cookie=self._cookies.mint(peer, now))
        )
        return Send([challenge]) if len(challenge) <= len(datagram) else Dropped("no_cookie")

    def _begin(self, key: Key, header: Header, payload: bytes, now: float) -> Outcome:
        if len(self._exchanges) >= MAX_EXCHANGES and self._kept:
            self._remove(next(iter(self._kept)))
        unanswered = self._unanswered.get(key[0], 0)
        if len(self._exchanges) >= MAX_EXCHANGES or unanswered >= MAX_UNANSWERED_A_PEER:
            return Dropped("too_many_exchanges")
        reassembly: Reassembly | None = None
        body: bytes | None
        try:
            # Before anything is booked: a length that its own fragment belies must not take others' room.
            if header.count == 1:
                body = whole(header, payload)
            else:
                reassembly = Reassembly(header)
                body = reassembly.add(header, payload)
        except WireError as error:
            return Dropped(f"malformed_{error.rule}")
        arriving = 0 if reassembly is None else header.total_length
        if self._reassembly_bytes + arriving > MAX_REASSEMBLY_BYTES:
            return Dropped("reassembly_full")
        # Until when the client may repeat it; one that names no deadline may repeat for long.
        remaining_s = header.remaining_us / 1e6 or LONGEST_KEPT_S
        kept_s = min(max(remaining_s, SHORTEST_KEPT_S), LONGEST_KEPT_S)
        exchange = _Exchange(now, header, reassembly, header.total_length)
        self._exchanges[key] = exchange
        self._expiry.set(key, now + kept_s)
        self._unanswered[key[0]] = unanswered + 1
        self._reassembly_bytes += arriving
        if reassembly is None and body is not None:
            return Message(key, header, body, now)
        return self._advance(key, exchange, header, body, repeated=False)

    def _continue(self, key: Key, exchange: _Exchange, header: Header, payload: bytes) -> Outcome:
        if exchange.reply:
            return Send(exchange.reply if header.index == 0 else [], exchange.class_name)
        if exchange.reassembly is None:
            return Send([_ack(header.request_id, (1 << exchange.first.count) - 1)])
        if header.index == 0:
            exchange.first = header
        repeated = bool(exchange.reassembly.bitmap >> header.index & 1)
        try:
            body = exchange.reassembly.add(header, payload)
        except WireError as error:
            return Dropped(f"malformed_{error.rule}")  # one bad fragment must not cost the good ones
        return self._advance(key, exchange, header, body, repeated=repeated)

    def _advance(self, key: Key, exchange: _Exchange, header: Header, body: bytes | None, *, repeated: bool) -> Outcome:
        """A fragment is in: the message if it is whole now, else an ack where the peer waits for one."""
        if body is not None:
            exchange.reassembly = None
            self._reassembly_bytes -= exchange.size
            return Message(key, exchange.first, body, exchange.began)
        if exchange.reassembly is not None and (repeated or header.index == header.count - 1):
            return Send([_ack(header.request_id, exchange.reassembly.bitmap)])
        return Send([])

    def _cancel(self, key: Key, exchange: _Exchange | None) -> Outcome:
        if exchange is None:
            return Dropped("unknown_exchange")
        if exchange.working:
            return Cancelled(key)  # it is kept until its walk is over (`forget`), so that no repeat starts another
        self._remove(key)
        return Send([])

    def _resend_missing(self, exchange: _Exchange | None, header: Header) -> Outcome:
        if exchange is None or not exchange.reply:
            return Dropped("unknown_exchange")
        bitmap = header.bitmap or 0
        missing = [each for index, each in enumerate(exchange.reply) if not bitmap >> index & 1]
        return Send(missing, exchange.class_name)

    def _keep(self, key: Key, header: Header, datagrams: list[bytes]) -> list[bytes]:
        exchange = self._exchanges.get(key)
        if exchange is None:
            return datagrams  # expired or cancelled meanwhile; the peer may still be glad of it
        if exchange.reply:
            self._kept_bytes -= exchange.size
        else:
            self._left(key[0])
        exchange.reply, exchange.class_name = datagrams, header.class_name
        exchange.size = sum(map(len, datagrams))
        self._kept[key] = None
        self._kept_bytes += exchange.size
        while self._kept_bytes > MAX_KEPT_BYTES:
            self._remove(next(iter(self._kept)))
        return datagrams

    def _expire(self, now: float) -> None:
        for key in self._expiry.pop_due(now):
            exchange = self._exchanges.get(key)
            if exchange is None:
                continue
            if exchange.working:  # its walk ends by its own deadline; until then a repeat must not start another
                self._expiry.set(key, now + SHORTEST_KEPT_S)
            else:
                self._remove(key)

    def _remove(self, key: Key) -> None:
        exchange = self._exchanges.pop(key)
        self._expiry.set(key, None)
        if exchange.reply:
            del self._kept[key]
            self._kept_bytes -= exchange.size
            return
        self._left(key[0])
        if exchange.reassembly is not None:
            self._reassembly_bytes -= exchange.size

    def _left(self, peer: Hashable) -> None:
        """One unanswered exchange of this peer less."""
        left = self._unanswered[peer] - 1
        if left:
            self._unanswered[peer] = left
        else:
            del self._unanswered[peer]


def _ack(request_id: int, bitmap: int) -> bytes:
    return encode(Header(type=Type.ACK, request_id=request_id, bitmap=bitmap))
