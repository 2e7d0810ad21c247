# SPDX-License-Identifier: Apache-2.0
"""An open-loop client: requests of two classes at Poisson instants, whatever becomes of those before; prints JSON.

Over HTTP/3, on as many connections as streams are needed for those that wait, or over HTTP/1.1 with as many
connections as requests are in flight. The instants come from a seed, so every gateway gets the same ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import cast

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamReset

from benchmarks.processes import quantile

BODY = b'{"inputs":[]}' + b" " * 987
PATH = "/v2/models/m/infer"
STREAMS = 100
"""Requests on one HTTP/3 connection; the gateways grant 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked, per second and for how long."""

    protocol: str
    port: int
    realtime_rate: float
    batch_rate: float
    seconds: float
    realtime_deadline_s: float
    batch_deadline_s: float
    connections: int
    seed: int


@dataclass(slots=True)
class Seen:
    """What became of one class."""

    sent: int = 0
    latencies: list[float] = field(default_factory=list)
    """Seconds, of answers with 200."""
    under_load: int = 0
    """Those in time that came before the last request was sent: what is drained afterwards says nothing of the load."""
    outcomes: Counter[str] = field(default_factory=Counter)

    def report(self, deadline_s: float) -> dict[str, object]:
        """The figures of a class."""
        ordered = sorted(self.latencies)
        in_time = sum(each <= deadline_s for each in ordered)
        return {
            "sent": self.sent,
            "answered": len(ordered),
            "in_time": in_time,
            "in_time_under_load": self.under_load,
            "p50_ms": quantile(ordered, 0.5) * 1e3 if ordered else None,
            "p99_ms": quantile(ordered, 0.99) * 1e3 if ordered else None,
            "outcomes": dict(self.outcomes),
        }


Ask = Callable[[str], Awaitable[str]]
"""A class's name -> the status of its answer."""


class Http3(QuicConnectionProtocol):
    """One HTTP/3 connection with many requests."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # as aioquic calls it
        self._http = H3Connection(self._quic)
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._status: dict[int, str] = {}
        self.busy = 0

    async def ask(self, name: str) -> str:
        stream_id = self._quic.get_next_available_stream_id()
        self._waiting[stream_id] = asyncio.get_running_loop().create_future()
        self.busy += 1
        self._http.send_headers(
            stream_id,
            [
                (b":method", b"POST"),
                (b":scheme", b"https"),
                (b":authority", b"localhost"),
                (b":path", PATH.encode()),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(BODY)),
                (b"inferlane-class", name.encode()),
            ],
        )
        self._http.send_data(stream_id, BODY, end_stream=True)
        self.transmit()
        try:
            return await self._waiting[stream_id]
        except asyncio.CancelledError:
            with suppress(ValueError):  # answered in this very moment
                self._quic.reset_stream(stream_id, 0x10C)
                self._quic.stop_stream(stream_id, 0x10C)
            self.transmit()
            raise
        finally:
            self.busy -= 1
            del self._waiting[stream_id]
            self._status.pop(stream_id, None)

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamReset):
            self._answered(event.stream_id, "reset")
        for message in self._http.handle_event(event):
            if isinstance(message, HeadersReceived):
                self._status[message.stream_id] = dict(message.headers)[b":status"].decode()
            if isinstance(message, (HeadersReceived, DataReceived)) and message.stream_ended:
                self._answered(message.stream_id, self._status.get(message.stream_id, "no head"))

    def _answered(self, stream_id: int, status: str) -> None:
        waiting = self._waiting.get(stream_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(status)


async def http3(load: Load, stack: AsyncExitStack) -> Ask:
    """Connections of each class's own, as docs/wire.md asks of clients."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE)

    async def some(count: int) -> list[Http3]:
        opening = (
            connect("127.0.0.1", load.port, configuration=configuration, create_protocol=Http3) for _ in range(count)
        )
        return [cast(Http3, await stack.enter_async_context(each)) for each in opening]  # what create_protocol made

    lines = {"realtime": await some(2), "batch": await some(load.connections)}

    async def ask(name: str) -> str:
        line = min(lines[name], key=lambda each: each.busy)
        return "client full" if line.busy >= STREAMS else await line.ask(name)

    return ask


async def http1(load: Load, stack: AsyncExitStack) -> Ask:
    """A pool of keep-alive connections."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    stack.callback(lambda: [stack.callback(writer.close) for _, writer in idle])

    async def ask(name: str) -> str:
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", load.port)
        try:
            head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}inferlane-class: {name}\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in answer or b"content-length:" not in answer:
            writer.close()
        else:
            idle.append((reader, writer))
        return answer.split(b" ", 2)[1].decode()

    return ask


async def run(load: Load) -> dict[str, object]:
    """Offer the load, wait for the last answer or deadline."""
    rng = random.Random(load.seed)
    arrivals = [
        (at, name)
        for name, rate in (("realtime", load.realtime_rate), ("batch", load.batch_rate))
        for at in _poisson(rng, rate, load.seconds)
    ]
    seen = {"realtime": Seen(), "batch": Seen()}
    deadlines = {"realtime": load.realtime_deadline_s, "batch": load.batch_deadline_s}
    async with AsyncExitStack() as stack:
        ask = await (http3 if load.protocol == "h3" else http1)(load, stack)
        start = monotonic()
        async with asyncio.TaskGroup() as asking:
            for at, name in sorted(arrivals):
                await asyncio.sleep(max(0.0, start + at - monotonic()))
                asking.create_task(_one(ask, name, seen[name], deadlines[name], start + load.seconds))
        elapsed = monotonic() - start
    report = {name: each.report(deadlines[name]) for name, each in seen.items()}
    return {"load": asdict(load), "elapsed_s": elapsed, **report}


async def _one(ask: Ask, name: str, seen: Seen, deadline_s: float, load_ends: float) -> None:
    seen.sent += 1
    began = monotonic()
    try:
        async with asyncio.timeout(deadline_s):
            status = await ask(name)
    except TimeoutError:
        status = "client deadline"
    except (OSError, asyncio.IncompleteReadError) as error:
        status = type(error).__name__
    seen.outcomes[status] += 1
    if status == "200":
        now = monotonic()
        seen.latencies.append(now - began)
        seen.under_load += now <= load_ends and now - began <= deadline_s


def _poisson(rng: random.Random, rate: float, seconds: float) -> list[float]:
    instants = []
    at = rng.expovariate(rate) if rate else seconds
    while at < seconds:
        instants.append(at)
        at += rng.expovariate(rate)
    return instants


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--protocol", choices=["h3", "h1"], default="h3")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--realtime-rate", type=float, default=48)
    parser.add_argument("--batch-rate", type=float, default=192)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--realtime-deadline-s", type=float, default=0.5)
    parser.add_argument("--batch-deadline-s", type=float, default=30)
    parser.add_argument("--connections", type=int, default=24, help="of HTTP/3, for batch")
    parser.add_argument("--seed", type=int, default=1)
    print(json.dumps(asyncio.run(run(Load(**vars(parser.parse_args()))))))


if __name__ == "__main__":
    main()
