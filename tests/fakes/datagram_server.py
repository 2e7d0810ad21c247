# SPDX-License-Identifier: Apache-2.0
"""The server's half of docs/wire.md, as small as a test can have it, and a network that loses, doubles and reorders."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import chain, repeat

from inferlane.transfer import Exchange, Reassembly
from inferlane.wire import Header, Type, decode, encode, fragments

Sent = tuple[float, bytes]
"""A delay in seconds and the datagram that leaves after it."""


class DatagramServer:
    """Answers every request with `reply` after `compute_s`.

    epoch_s: cookies are good for one to two of these; None: inside QUIC, no cookies.
    """

    def __init__(self, reply: bytes, *, compute_s: float, epoch_s: float | None, max_datagram: int) -> None:
        self._reply_body = reply
        self._compute_s = compute_s
        self._epoch_s = epoch_s
        self._max_datagram = max_datagram
        self._arriving: dict[int, Reassembly] = {}
        self._ready_at: dict[int, float] = {}
        self.bodies: list[bytes] = []
        """Of the requests that ran, in order."""

    def receive(self, datagram: bytes, now: float) -> list[Sent]:
        header, length = decode(datagram)
        assert header.type < Type.REPLY
        if self._epoch_s is not None and header.cookie not in (self.cookie(now), self.cookie(now - self._epoch_s)):
            asks = header.type is Type.PING or (header.type is Type.REQUEST and header.index == 0)
            challenge = encode(Header(type=Type.CHALLENGE, request_id=header.request_id, cookie=self.cookie(now)))
            return [(0, challenge)] if asks and len(challenge) <= len(datagram) else []
        if header.type is Type.PING:
            return [(0, encode(Header(type=Type.PONG, request_id=header.request_id)))]
        if header.type is Type.RECEIVED:
            return self._resend(header, now)
        return self._request(header, datagram[length:], now) if header.type is Type.REQUEST else []

    def _request(self, header: Header, payload: bytes, now: float) -> list[Sent]:
        ready_at = self._ready_at.get(header.request_id)
        if ready_at is not None:
            if now < ready_at:
                return [self._ack(header.request_id, (1 << header.count) - 1)]
            return self._reply(header.request_id) if header.index == 0 else []
        arriving = self._arriving.setdefault(header.request_id, Reassembly(header))
        repeated = arriving.bitmap >> header.index & 1
        body = arriving.add(header, payload)
        if body is not None:
            self.bodies.append(body)
            self._ready_at[header.request_id] = now + self._compute_s
            return [(self._compute_s, each) for _, each in self._reply(header.request_id)]
        if repeated or header.index == header.count - 1:
            return [self._ack(header.request_id, arriving.bitmap)]
        return []

    def _resend(self, header: Header, now: float) -> list[Sent]:
        if now < self._ready_at.get(header.request_id, now + 1):
            return []
        bitmap = header.bitmap or 0
        return [each for index, each in enumerate(self._reply(header.request_id)) if not bitmap >> index & 1]

    def _reply(self, request_id: int) -> list[Sent]:
        header = Header(type=Type.REPLY, request_id=request_id, status=200, queue_us=0, backend_us=0)
        return [(0, each) for each in fragments(header, self._reply_body, max_datagram=self._max_datagram)]

    def _ack(self, request_id: int, bitmap: int) -> Sent:
        return 0, encode(Header(type=Type.ACK, request_id=request_id, bitmap=bitmap))

    def cookie(self, now: float) -> bytes:
        """The one that is handed out now."""
        assert self._epoch_s is not None
        return b"epoch" + int(now // self._epoch_s).to_bytes(11, signed=True)


def converse(
    exchange: Exchange, server: DatagramServer, fates: Iterator[list[float]], *, now: float
) -> tuple[int, float]:
    """Let them talk until the exchange ends: how many datagrams the client sent, and when it ended.

    fates: for each datagram the delays of its copies; none: it is lost.
    """
    sent = order = 0
    on_the_way: list[tuple[float, int, bool, bytes]] = []

    def send(datagrams: list[Sent], *, to_server: bool) -> None:
        nonlocal order
        for delay, datagram in datagrams:
            for travel in next(fates):
                order += 1
                heapq.heappush(on_the_way, (now + delay + travel, order, to_server, datagram))

    flight = exchange.start(now)
    while True:
        sent += len(flight)
        send([(0, each) for each in flight], to_server=True)
        if exchange.done:
            return sent, now
        if on_the_way and on_the_way[0][0] <= exchange.timer():
            now, _, to_server, datagram = heapq.heappop(on_the_way)
            flight = []
            if to_server:
                send(server.receive(datagram, now), to_server=False)
            else:
                header, length = decode(datagram)
                flight = exchange.receive(header, datagram[length:], now)
        else:
            now = exchange.timer()
            flight = exchange.on_timer(now)


def then_perfect(fates: list[list[float]]) -> Iterator[list[float]]:
    """These fates first, afterwards every datagram arrives once, 5 ms later."""
    return chain(fates, repeat([0.005]))
