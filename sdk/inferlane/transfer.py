# SPDX-License-Identifier: Apache-2.0
"""One request over datagrams as its client sees it (docs/wire.md, "Reliability of datagrams").

Sans-IO: decoded datagrams and `now` in, datagrams to send out. The server's half is proxy/protocols/inference.py; both
halves put fragments together with Reassembly.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from math import inf
from typing import Final

from inferlane.errors import Reason, Refused
from inferlane.header import changed
from inferlane.reassembly import Reassembly, whole
from inferlane.wire import (
    COOKIE_LENGTH,
    MAX_DATAGRAM,
    Header,
    Type,
    WireError,
    encode,
    heads,
    microseconds,
    split,
)

__all__ = ["NO_COOKIE", "Exchange", "Reassembly", "refusal"]

# A first datagram must be at least as long as the challenge that answers it, which is 48 bytes: with these zeros it is.
NO_COOKIE: Final = bytes(COOKIE_LENGTH)
_SHORTEST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0
_RTTS_TO_WAIT: Final = 3
_RTT_GAIN: Final = 1 / 8  # RFC 6298 section 2
_LONGEST_DETAIL: Final = 2000


def refusal(header: Header, payload: bytes) -> Refused:
    """The exception that an error message stands for."""
    return Refused(
        Reason.from_code(header.reason),
        _detail(payload),
        retry_after_s=None if header.retry_after_ms is None else header.retry_after_ms / 1e3,
        status=header.status,
    )


def _detail(payload: bytes) -> str:
    """The `detail` of a problem document (RFC 9457); the text itself where it is no JSON."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return payload.decode("utf-8", "replace").strip()[:_LONGEST_DETAIL]
    detail = document.get("detail") if isinstance(document, dict) else None
    if not isinstance(detail, str):
        return ""
    return detail[:_LONGEST_DETAIL].encode("utf-8", "replace").decode()  # JSON may hold what no terminal prints


class Exchange:
    """One request over datagrams, until its reply, its refusal or its deadline.

    Call `start`, then `receive` for each datagram from the server that carries this `request_id`, and `on_timer` at
    `timer()`; send what they return. It ends with `done`: either `reply` or `failed` is set. Between two timers
    it sends at most one flight in answer to the server, so that no server can make it a flood.

    deadline: monotonic seconds. The server is told what is left of it if header.remaining_us is not 0.
    cookie, rtt_s: what an earlier exchange with this server learned, None at first; read them again afterwards.
    cookies: False inside QUIC, whose handshake has proved the address.
    Raises Refused(USE_STREAM) when the body needs too many datagrams.
    """

    def __init__(  # noqa: PLR0913  two are the message, the rest is what the path to the server is like
        self,
        header: Header,
        body: bytes,
        *,
        now: float,
        deadline: float,
        max_datagram: int = MAX_DATAGRAM,
        cookie: bytes | None = None,
        rtt_s: float | None = None,
        cookies: bool = True,
    ) -> None:
        self.request_id = header.request_id
        self.cookie = cookie
        self.rtt_s = rtt_s
        """Smoothed round-trip time; None: never seen."""
        self.reply: tuple[Header, bytes] | None = None
        self.failed: Refused | None = None
        self.dropped = 0
        """Datagrams of this exchange that made no sense."""
        self._cookies = cookies
        # The cookie's place is kept from the start, so that a repeat is cut as the first try was.
        self._header = changed(header, cookie=self._shown_cookie)
        self._payloads = split(self._header, body, max_datagram=max_datagram)
        self._header.index, self._header.count, self._header.total_length = 0, len(self._payloads), len(body)
        self._deadline = deadline
        self._next = now
        self._wait_s = self._first_wait()
        self._sent_at: float | None = None  # of what has been sent only once, so that its answer measures the path
        self._acked: int | None = None  # bitmap of the request's fragments; None: the server has not told yet
        self._challenged = False
        self._may_answer = True  # one flight between two timers
        self._arriving: Reassembly | None = None
        self._progressed = False  # a fragment of the reply came since the last timer

    def __repr__(self) -> str:
        state = "failed" if self.failed else "replied" if self.reply else "receiving" if self._arriving else "asking"
        return f"<Exchange {self.request_id:016x} {state}>"

    @property
    def done(self) -> bool:
        """Whether `reply` or `failed` is set; then nothing is sent or awaited any more."""
        return self.reply is not None or self.failed is not None

    def start(self, now: float) -> list[bytes]:
        """The first flight: all fragments, or the first one alone as long as no cookie is known."""
        if self.done or self._expired(now):
            return []
        self._sent_at = now
        self._next = now + self._wait_s
        return self._flight(self._unacked if self._proved else [0], now)

    def receive(self, header: Header, payload: bytes, now: float) -> list[bytes]:
        """A datagram came from the server: what to send now."""
        if self.done or header.request_id != self.request_id or self._expired(now):
            return []
        if header.type in (Type.REPLY, Type.ERROR):
            self._on_answer(header, payload, now)
        elif header.type is Type.CHALLENGE:
            return self._on_challenge(header, now)
        elif header.type is Type.ACK:
            return self._on_ack(header, now)
        return []

    def timer(self) -> float:
        """When to call `on_timer`, monotonic seconds."""
        return inf if self.done else min(self._next, self._deadline)

    def on_timer(self, now: float) -> list[bytes]:
        """The time came: what to repeat. Before its time it does nothing."""
        if now < self.timer() or self._expired(now):
            return []
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        self._next = now + self._wait_s
        self._sent_at = None
        self._may_answer = True
        if self._arriving is not None:
            return self._ask_for_the_rest(self._arriving)
        if not self._proved:
            return self._flight([0], now)
        # Only fragment 0 draws a challenge or the kept reply, and the last one draws an ack that tells what is missing.
        wanted = [len(self._payloads) - 1] if self._acked is None else self._unacked
        return self._flight([*(index for index in wanted if index), 0], now)

    def cancel(self) -> list[bytes]:
        """Nobody waits any more: what tells the server so."""
        if self.done:
            return []
        self.failed = Refused(Reason.CANCELLED, "cancelled by the caller")
        return [self._control(Type.CANCEL)] if self._proved else []

    @property
    def _proved(self) -> bool:
        return self.cookie is not None or not self._cookies

    @property
    def _shown_cookie(self) -> bytes | None:
        return (self.cookie or NO_COOKIE) if self._cookies else None

    @property
    def _unacked(self) -> list[int]:
        acked = self._acked or 0
        return [index for index in range(len(self._payloads)) if not acked >> index & 1]

    def _on_answer(self, header: Header, payload: bytes, now: float) -> None:
        arriving, before = self._arriving, 0
        body: bytes | None
        try:
            if header.count == 1 and (arriving is None or header.type is Type.ERROR):
                head, body = header, whole(header, payload)
            else:
                arriving = arriving or Reassembly(header)
                before = arriving.bitmap
                body = arriving.add(header, payload)
                head = arriving.head
        except WireError:
            self.dropped += 1
            return
        if header.index == 0 and header.backend_us is not None:
            self._measure(now, (header.queue_us or 0) + header.backend_us + (header.compute_us or 0))
        if body is None:
            self._progressed |= arriving is not None and arriving.bitmap != before
            if self._arriving is None:
                self._arriving = arriving
                self._restart_timer(now)
        elif header.type is Type.ERROR:
            self.failed = refusal(header, body)
        else:
            self.reply = head, body

    def _on_challenge(self, header: Header, now: float) -> list[bytes]:
        if not self._cookies or header.cookie == self.cookie:
            return []  # the repeat of a challenge that was answered
        self.cookie = header.cookie
        self._measure(now, 0)
        if not self._challenged:
            self._challenged = True
            self._restart_timer(now)
        elif not self._take_turn():
            return []
        if self._arriving is not None:
            return [self._received(self._arriving)]
        return self._flight(self._unacked or [0], now)

    def _on_ack(self, header: Header, now: float) -> list[bytes]:
        self._measure(now, 0)
        self._acked = header.bitmap
        if self._arriving is not None or not self._unacked or not self._take_turn():
            return []
        return self._flight(self._unacked, now)

    def _take_turn(self) -> bool:
        turn, self._may_answer = self._may_answer, False
        return turn

    def _ask_for_the_rest(self, arriving: Reassembly) -> list[bytes]:
        datagrams = [self._received(arriving)]
        if not self._progressed:
            # Repeating the request could run it again and mix two replies; a ping too tells whether the cookie is old.
            datagrams.append(self._control(Type.PING))
        self._progressed = False
        return datagrams

    def _flight(self, indexes: Collection[int], now: float) -> list[bytes]:
        header = self._header
        if header.remaining_us:
            header.remaining_us = max(microseconds(self._deadline - now), 1)
        header.cookie = self._shown_cookie
        fragment_heads = heads(header, self._payloads)
        return [fragment_heads[index] + self._payloads[index] for index in indexes]

    def _received(self, arriving: Reassembly) -> bytes:
        return self._control(Type.RECEIVED, arriving.bitmap)

    def _control(self, kind: Type, bitmap: int | None = None) -> bytes:
        return encode(Header(type=kind, request_id=self.request_id, cookie=self._shown_cookie, bitmap=bitmap))

    def _measure(self, now: float, in_server_us: int) -> None:
        if self._sent_at is None:
            return  # after a repeat nobody knows which one was answered (RFC 6298 section 3)
        sample = max(now - self._sent_at - in_server_us / 1e6, 0.0)
        self.rtt_s = sample if self.rtt_s is None else self.rtt_s + _RTT_GAIN * (sample - self.rtt_s)
        self._sent_at = None

    def _first_wait(self) -> float:
        return min(max(_SHORTEST_WAIT_S, _RTTS_TO_WAIT * (self.rtt_s or 0.0)), _LONGEST_WAIT_S)

    def _restart_timer(self, now: float) -> None:
        self._wait_s = self._first_wait()
        self._next = now + self._wait_s

    def _expired(self, now: float) -> bool:
        if now < self._deadline:
            return False
        self.failed = Refused(Reason.DEADLINE, "no answer came before the deadline; give it more time or ask again")
        return True
