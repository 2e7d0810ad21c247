# SPDX-License-Identifier: Apache-2.0
"""Requests as datagrams: a shell of sockets and timers around inferlane.transfer, for UDP and for QUIC DATAGRAM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from inferlane import wire
from inferlane.errors import Refused
from inferlane.messages import EncodedReply, EncodedRequest
from inferlane.transfer import Exchange
from inferlane.transports.native import read_reply, request_header
from inferlane.transports.peer import Answer, Peer, settle

__all__ = ["Exchanges"]

_SERVERS = 0x80
"""Types from here on are a server's; whatever else comes is dropped, so that a reply is never answered."""


@dataclass(slots=True, eq=False)
class _Running:
    """One conversation and what waits for it."""

    exchange: Exchange
    answer: Answer
    asked_at: float
    timer: asyncio.TimerHandle | None = None


class Exchanges:
    """Every conversation over one path.

    send: puts datagrams on the path, or loses them. cookies: whether the path asks for proof of our address.
    """

    def __init__(self, peer: Peer, send: Callable[[Sequence[bytes]], None], *, cookies: bool) -> None:
        self.cookie: bytes | None = None
        """The newest that the gateway gave."""
        self.round_trip_s: float | None = None
        """What the last conversation learned of the path."""
        self._cookies = cookies
        self._peer = peer
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._running: dict[int, _Running] = {}

    async def ask(self, request: EncodedRequest, *, max_datagram: int) -> EncodedReply:
        """One request, one reply. Raises Refused or ConnectionFailed; cancelled, it tells the gateway."""
        now = monotonic()
        exchange = Exchange(
            request_header(request, now),
            request.body,
            now=now,
            deadline=request.deadline,
            max_datagram=max_datagram,
            cookie=self.cookie,
            rtt_s=self.round_trip_s,
            cookies=self._cookies,
        )
        answer = self._peer.expect(request.request_id)
        running = _Running(exchange, answer, now)
        self._running[request.request_id] = running
        self._step(running, exchange.start(now))
        try:
            return await self._peer.answer(request.request_id, answer, self._abandon)
        finally:
            self._forget(request.request_id)

    def received(self, datagram: bytes) -> None:
        """A datagram came. What is no message of a server's, or belongs to no request of ours, is dropped."""
        try:
            header, start = wire.decode(datagram)
        except wire.WireError:
            return  # noise: an open port hears everybody, and an answer would only spread it
        running = self._running.get(header.request_id)
        if running is None or header.type < _SERVERS:
            return
        self._step(running, running.exchange.receive(header, datagram[start:], monotonic()))
        if header.type is wire.Type.CHALLENGE:  # else: a conversation that began with an older cookie
            self.cookie = running.exchange.cookie
        self.round_trip_s = running.exchange.rtt_s

    def _step(self, running: _Running, datagrams: list[bytes]) -> None:
        exchange = running.exchange
        self._send(datagrams)
        if running.timer is not None:
            running.timer.cancel()
            running.timer = None
        if exchange.reply is not None:
            settle(running.answer, _read(*exchange.reply, monotonic() - running.asked_at))
        elif exchange.failed is not None:
            settle(running.answer, exchange.failed)
        elif not running.answer.done():
            running.timer = self._loop.call_at(exchange.timer(), self._on_timer, running)

    def _on_timer(self, running: _Running) -> None:
        running.timer = None
        # An event loop's clock may be coarser than ours and wake us a little early.
        now = max(running.exchange.timer(), monotonic())
        repeats = running.exchange.on_timer(now)
        if repeats:
            self._peer.asked()  # a gateway answers every repeat
        self._step(running, repeats)

    def _abandon(self, request_id: int) -> None:
        self._send(self._running[request_id].exchange.cancel())

    def _forget(self, request_id: int) -> None:
        running = self._running.pop(request_id, None)
        if running is not None and running.timer is not None:
            running.timer.cancel()


def _read(header: wire.Header, body: bytes, waited_s: float) -> EncodedReply | Refused:
    try:
        return read_reply(header, body, waited_s=waited_s)
    except Refused as refusal:
        return refusal
