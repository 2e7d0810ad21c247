# SPDX-License-Identifier: Apache-2.0
"""What one request costs between QUIC's stream events and a backend's answer, and back: no socket, no packet.

Everything of the walk is real, HTTP/3 and QPACK included; below it is a QUIC connection that only takes bytes, behind
it a backend that answers in the loop's next turn. CPU of this thread, the least of many short rounds: what else runs
on the machine makes a round longer, never shorter.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import time
from collections import deque
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import pylsqpack
import uvloop
from aioquic.h3.connection import FrameType, encode_frame

from backends.messages import Api, Reply, Request
from proxy.config.loading import load
from proxy.listeners.http3 import Http3Session
from proxy.listeners.quic import Peer, QuicListener
from proxy.quic.connection import Connection, StreamDataReceived
from proxy.server import Gateway
from proxy.telemetry import logs
from qos.limit import FixedLimit

IN_FLIGHT = 64
"""At most, so that nobody waits at the gate."""
CONFIG = Path(__file__).parent.parent / "conf" / "bench-forward.yaml"
HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/v2/models/m/infer"),
    (b"content-type", b"application/json"),
    (b"content-length", b"1000"),
]
BODY = b"{" + b" " * 998 + b"}"
ANSWER = b"{" + b" " * 198 + b"}"
# What nginx adds to an answer, and a backend passes on.
ANSWER_FIELDS = ((b"content-type", b"application/json"),)
TOKEN = b'data: {"id":"c","choices":[{"delta":{"content":"word"}}]}\n\n'


class Wire:
    """As much of a connection as HTTP/3 needs: takes what is written, and knows which streams were ended."""

    def __init__(self) -> None:
        self.configuration = SimpleNamespace(is_client=False)
        self._quic_logger = None
        self._remote_max_datagram_frame_size = None
        self._next_uni = 3
        self.ended = 0
        self.sent = 0
        self.round_trip_s = 0.0002
        self.validated_address = ("127.0.0.1", 40000)

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        self._next_uni += 4
        return self._next_uni - 4

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        self.sent += len(data)
        self.ended += end_stream

    def consume(self, stream_id: int, count: int) -> bool:
        return False

    def buffered(self, stream_id: int) -> int:
        return 0

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        raise AssertionError(stream_id, error_code)


class Tokens:
    """A stream of pieces, each made when `tick` is called."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._ready: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        while not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._left -= 1
        return self._ready.popleft()

    def tick(self) -> None:
        """One more is made."""
        self._ready.append(TOKEN)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def aclose(self) -> None:
        """Nothing is held."""


class NextTurn:
    """A backend that answers in the loop's next turn, as one that was asked over a socket does."""

    api = Api.OIP
    ready = True

    def __init__(self) -> None:
        self.tokens: list[Tokens] = []
        self.count = 0
        """Of the pieces of each answer; 0: it is whole."""

    async def infer(self, request: Request) -> Reply:
        await request.body.read_all()
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        loop.call_soon(answer.set_result, None)
        await answer
        if not self.count:
            return Reply(body=ANSWER, fields=ANSWER_FIELDS)
        tokens = Tokens(self.count)
        self.tokens.append(tokens)
        return Reply(body=tokens, fields=((b"content-type", b"text/event-stream"),), streaming=True)


class Bench:
    """One connection's session before a gateway's pipeline, which logs from this level on."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._use_level()
        self.gateway = Gateway(load(CONFIG), state_dir=Path("/nonexistent"))
        self.backend = NextTurn()
        pool = self.gateway._routes.pools[0]
        for endpoint in pool.endpoints:
            endpoint.backend, endpoint.limit = cast(Any, self.backend), FixedLimit(IN_FLIGHT)
        self.wire = Wire()
        listener = SimpleNamespace(marks=self.gateway.marks, schedule_flush=lambda peer: None, flush=lambda peer: None)
        self.peer = Peer(cast(QuicListener, listener), cast(Connection, self.wire), ("127.0.0.1", 40000), 0)
        self.session = Http3Session(
            self.peer, self.gateway.pipeline, listener="main", max_body=1 << 24, clock=time.monotonic
        )
        _, section = pylsqpack.Encoder().encode(0, HEADERS)
        self.request = encode_frame(FrameType.HEADERS, section) + encode_frame(FrameType.DATA, BODY)
        self.stream_id = 0

    def _use_level(self) -> None:
        logs.configure("json", self._level, BytesIO())

    async def requests(self, total: int, in_flight: int) -> float:
        """CPU seconds of so many requests."""
        self._use_level()
        began = time.thread_time()
        for _ in range(total // in_flight):
            until = self.wire.ended + in_flight
            for _ in range(in_flight):
                self.session.handle(StreamDataReceived(self.request, True, self.stream_id))
                self.stream_id += 4
            while self.wire.ended < until:
                await asyncio.sleep(0)
        while not self.session.idle:
            await asyncio.sleep(0)
        return time.thread_time() - began

    async def streams(self, streams: int, count: int) -> float:
        """CPU seconds of so many token streams' pieces, without their begin and end."""
        self._use_level()
        self.backend.count, self.backend.tokens = count, []
        until = self.wire.ended + streams
        for _ in range(streams):
            self.session.handle(StreamDataReceived(self.request, True, self.stream_id))
            self.stream_id += 4
        while len(self.backend.tokens) < streams:
            await asyncio.sleep(0)
        for _ in range(4):
            await asyncio.sleep(0)
        began = time.thread_time()
        for _ in range(count - 1):
            for each in self.backend.tokens:
                each.tick()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        took = time.thread_time() - began
        for each in self.backend.tokens:
            each.tick()
        while self.wire.ended < until or not self.session.idle:
            await asyncio.sleep(0)
        self.backend.count = 0
        return took


async def measure(rounds: int) -> dict[str, float]:
    """Microseconds a request and a token, the least of the rounds."""
    found: dict[str, float] = {}

    def least(name: str, seconds: float, count: int) -> None:
        found[name] = min(found.get(name, 1e9), round(seconds / count * 1e6, 2))

    loud, quiet = Bench("info"), Bench("warning")
    for _ in range(rounds):
        least("request, 64 in flight", await loud.requests(640, 64), 640)
        least("request, 1 in flight", await loud.requests(200, 1), 200)
        least("token, 64 streams", await loud.streams(64, 21), 64 * 20)
        least("request, 64 in flight, no log", await quiet.requests(640, 64), 640)
    return found


async def profile(what: str) -> None:
    """Where the time goes."""
    bench = Bench("info")
    await bench.requests(640, 64)
    profiler = cProfile.Profile()
    profiler.enable()
    if what == "token":
        await bench.streams(64, 101)
    else:
        await bench.requests(6400, 64 if what == "64" else 1)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(60)


def main() -> None:
    """As a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--profile", choices=("64", "1", "token"))
    options = parser.parse_args()
    if options.profile:
        uvloop.run(profile(options.profile))
    else:
        print(json.dumps(uvloop.run(measure(options.rounds))))


if __name__ == "__main__":
    main()
