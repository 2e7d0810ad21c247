# SPDX-License-Identifier: Apache-2.0
"""One UDP socket to a backend, for one traffic class: many exchanges in flight over it, told apart by their ids.

The conversation itself is inferlane.transfer's; here are the socket, the timer and who waits for what.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

from backends.remote.address import Address, open_socket, reaching, resolve, unreachable
from backends.remote.marks import MarkedSocket
from inferlane.errors import Reason, Refused
from inferlane.transfer import NO_COOKIE, Exchange
from inferlane.wire import MAX_DATAGRAM, Header, Type, WireError, decode, encode
from qos.marking import UNMARKED, Mark

__all__ = ["Answer", "Lane", "Path"]

BURST = 64
"""Datagrams read in one turn of the loop, so that a flood leaves time for everything else."""
PING_REPEAT_S = 0.1
"""Until a ping is sent again, doubled each time: one lost datagram is no dead server."""
RECEIVE_BUFFER = 1 << 20
"""Bytes; the kernel's 208 KiB hold some 90 datagrams as it counts them, and 16 long replies may come at once."""
_NO_ROOM = (errno.ENOBUFS, errno.ENOMEM)
"""A full queue of the device, or no memory now: no news of the server (send(2))."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as the wire has it."""

    header: Header
    body: bytes
    first_byte: float
    """Monotonic seconds."""


class Path:
    """The way to one server: what its lanes have learned of it, and which there are."""

    def __init__(self, host: str, port: int) -> None:
        self.rtt_s: float | None = None
        self.lanes: set[Lane] = set()
        self._host = host
        self._port = port
        self._failures = 0

    async def open(self, deadline: float, mark: Mark = UNMARKED) -> socket.socket:
        """A socket connected to the server, so that the kernel drops what others send. Raises Refused."""
        async with reaching(deadline):
            addresses = await resolve(self._host, self._port, socket.SOCK_DGRAM)
            turn = self._failures % len(addresses)
            addresses = addresses[turn:] + addresses[:turn]
            for family, address in addresses[:-1]:
                with suppress(OSError):  # the last address tells what is wrong
                    return _connected(family, address, mark)
            return _connected(*addresses[-1], mark)

    def failed(self) -> None:
        """Nobody answers at the address that was tried last. Connecting does not show it: the next has its turn."""
        self._failures += 1


def _connected(family: int, address: Address, mark: Mark) -> socket.socket:
    sock = open_socket(family, socket.SOCK_DGRAM, mark)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.connect(address)  # sends nothing; fails where there is no route
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(slots=True, eq=False)
class _Asked:
    exchange: Exchange
    answered: asyncio.Future[Answer]
    at: float
    first_byte: float | None = None


class Lane:
    """The exchanges of one traffic class with one server.

    sock: connected, and this lane's from here on; mark: what it was opened with.
    """

    def __init__(self, name: str, sock: socket.socket, path: Path, mark: Mark = UNMARKED) -> None:
        self.retired = False
        """The server is not where this socket leads: its name is to be looked up again, for a new lane."""
        self.dropped = 0
        """Datagrams that made no sense."""
        self._name = name
        self._sock = sock
        self._marked = MarkedSocket(sock, mark)
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._asked: dict[int, _Asked] = {}
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._cookie: bytes | None = None
        self._heard = -inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._closed = False
        self._loop.add_reader(sock, self._readable)
        path.lanes.add(self)

    def __repr__(self) -> str:
        return f"<Lane {self._name}{' retired' if self.retired else ''}, {len(self._asked)} in flight>"

    def carry(self, mark: Mark) -> None:
        """What is sent next has this mark, also what is repeated of requests in flight."""
        if not self._closed:
            self._marked.carry(mark)

    async def ask(self, header: Header, body: bytes, *, deadline: float) -> Answer:
        """One exchange. Raises Refused, the server's refusals too, and WireError where the header cannot be written."""
        now = monotonic()
        exchange = Exchange(header, body, now=now, deadline=deadline, cookie=self._cookie, rtt_s=self._path.rtt_s)
        asked = _Asked(exchange, self._loop.create_future(), now)
        self._asked[header.request_id] = asked
        try:
            self._send(exchange.start(now))
            self._advance(asked)
            return await asked.answered
        except asyncio.CancelledError:
            self._send(exchange.cancel())
            raise
        finally:
            del self._asked[header.request_id]
            self._let_go_if_left()

    async def ping(self, *, deadline: float) -> None:
        """Wait for a sign of life: the pong, or the challenge that a ping with an old cookie draws. Raises Refused."""
        ping_id, heard = secrets.randbits(64), self._loop.create_future()
        # A server that must not amplify answers no ping that is shorter than its challenge (docs/wire.md).
        ping = encode(Header(type=Type.PING, request_id=ping_id, cookie=self._cookie or NO_COOKIE))
        self._pings[ping_id] = heard
        repeat_s = PING_REPEAT_S
        try:
            while not heard.done():
                left = deadline - monotonic()
                if left <= 0:
                    self._unheard()
                    raise unreachable("no answer to a ping")
                self._send([ping])
                await asyncio.wait([heard], timeout=min(repeat_s, left))
                repeat_s *= 2
            heard.result()
        finally:
            del self._pings[ping_id]
            if not heard.cancel():
                heard.exception()  # seen, though the prober may have been cancelled after it was set
            self._let_go_if_left()

    def close(self, error: Refused) -> None:
        """End: whoever waits gets `error`."""
        self.retired = True
        everybody: list[asyncio.Future[Any]] = [asked.answered for asked in self._asked.values()]
        for waiting in (*everybody, *self._pings.values()):
            if not waiting.done():
                waiting.set_exception(error)
        self._let_go()

    def _let_go_if_left(self) -> None:
        if self.retired and not self._asked and not self._pings:
            self._let_go()

    def _let_go(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._path.lanes.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(BURST):
            try:
                data = self._sock.recv(MAX_DATAGRAM + 1)  # one more, to tell what is too long
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._broke(error)
                return
            if len(data) <= MAX_DATAGRAM:
                self._received(data)
            else:
                self.dropped += 1

    def _received(self, data: bytes) -> None:
        try:
            header, length = decode(data)
        except WireError:
            self.dropped += 1
            return
        now = self._heard = monotonic()
        if (ping := self._pings.get(header.request_id)) is not None:
            if not ping.done() and header.type in (Type.PONG, Type.CHALLENGE):
                ping.set_result(None)
                self._cookie = header.cookie or self._cookie
            return
        asked = self._asked.get(header.request_id)
        if asked is None or asked.exchange.done:
            return  # late, or of nobody: docs/wire.md has both dropped
        if asked.first_byte is None and header.type in (Type.REPLY, Type.ERROR):
            asked.first_byte = now
        self._send(asked.exchange.receive(header, data[length:], now))
        if header.type is Type.CHALLENGE:
            self._cookie = asked.exchange.cookie
        self._path.rtt_s = asked.exchange.rtt_s
        self._advance(asked)

    def _advance(self, asked: _Asked) -> None:
        """Something happened to this exchange: wake whoever waits for it, or see to its timer."""
        exchange = asked.exchange
        if asked.answered.done():
            return
        if not exchange.done:
            self._see_to_timer(exchange.timer())
        elif exchange.reply is not None:
            header, body = exchange.reply
            asked.answered.set_result(Answer(header, body, asked.first_byte or self._heard))
        else:
            self._fail(asked)

    def _fail(self, asked: _Asked) -> None:
        error = asked.exchange.failed
        assert error is not None  # done without a reply
        silent = self._heard < asked.at  # since this was asked, whoever else asked
        if silent and isinstance(error, Refused) and error.reason is Reason.DEADLINE:
            self._unheard()
        asked.answered.set_exception(error)

    def _unheard(self) -> None:
        """Nobody has answered here for a whole wait: the next exchange looks the name up again."""
        if not self.retired:
            self.retired = True
            self._path.failed()

    def _send(self, datagrams: Iterable[bytes]) -> None:
        for datagram in datagrams:
            if self._closed:
                return
            try:
                self._sock.send(datagram)
            except (BlockingIOError, InterruptedError):
                return  # no room: lost like any other, and repeated by the timer
            except OSError as error:
                if error.errno in _NO_ROOM:
                    return
                self._broke(error)

    def _broke(self, error: OSError) -> None:
        """ICMP says that the server's port is closed, or there is no route any more."""
        self._path.failed()
        self.close(unreachable(error))

    # One timer for all: it looks at every exchange when it fires, and is set for the next.

    def _see_to_timer(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_later(max(0.0, when - monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = monotonic()
        for asked in tuple(self._asked.values()):
            exchange = asked.exchange
            if exchange.timer() <= now:
                self._send(exchange.on_timer(now))
            self._advance(asked)
