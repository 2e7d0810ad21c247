# SPDX-License-Identifier: Apache-2.0
"""A client that keeps token streams open and prints when their tokens came, as one JSON object.

Closed loop: a stream that ends is followed by the next one on its connection. They begin at different instants within
a gap, as those of clients who know nothing of each other; with --lockstep all at once, as an engine's batch.
"""

from __future__ import annotations

import argparse
import json
import selectors
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial

from benchmarks.processes import cpu_seconds, quantile
from benchmarks.token_lines import Http1Line, Http3Line, Line, StreamError

WAYS = ("direct", "h1", "h3")
STREAMS_A_LINE = 8
"""Over one HTTP/3 connection."""
_SENT = b'"sent_ns":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the server."""

    way: str
    """direct: HTTP/1.1 without TLS, to the model server; h1, h3: to the gateway."""
    port: int
    pid: int
    """The gateway's, for its CPU time; 0: nobody's."""
    streams: int
    """Open at once."""
    total: int
    """Streams that are counted, behind one round that is not."""
    tokens: int
    """Of each stream."""
    gap_ms: float
    """The server's, for the instants of the beginnings."""
    lockstep: bool
    timeout_s: float


@dataclass(slots=True)
class Outcome:
    """What the counted streams saw, ms, and what they cost."""

    first_p50_ms: float = 0.0
    """From the request to the first token."""
    first_p99_ms: float = 0.0
    gap_p50_ms: float = 0.0
    """Between two tokens of a stream."""
    gap_p99_ms: float = 0.0
    way_p50_ms: float = 0.0
    """From when the server sent a token to when the client's kernel had it."""
    way_p99_ms: float = 0.0
    tokens_per_s: float = 0.0
    server_cpu_us: float = 0.0
    """Per token."""


@dataclass(slots=True)
class Stream:
    """One stream in flight."""

    asked: int
    counted: bool
    last: int = 0
    tokens: int = 0
    rest: bytes = b""


@dataclass(slots=True)
class Seen:
    """Nanoseconds of the counted streams."""

    first: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    ways: list[int] = field(default_factory=list)


class Run:
    """Connections to one server, and the streams that go over them."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.seen = Seen()
        self._body = json.dumps({"model": "m", "prompt": "x" * 200, "stream": True, "max_tokens": load.tokens}).encode()
        self._open: dict[tuple[int, int], Stream] = {}
        self._next: list[tuple[float, int]] = []
        """When a stream begins, monotonic seconds, on which line."""
        self._deadline = time.monotonic() + load.timeout_s
        self._ended = self._begun = 0
        self._selector = selectors.DefaultSelector()
        count = -(-load.streams // STREAMS_A_LINE) if load.way == "h3" else load.streams
        self._lines = [self._line(index) for index in range(count)]
        for index, line in enumerate(self._lines):
            self._selector.register(line.sock, selectors.EVENT_READ, index)

    def connect(self) -> None:
        """All handshakes."""
        while not all(line.ready for line in self._lines):
            self._wake()

    def streams(self) -> None:
        """All of them, until the last has ended."""
        load = self.load
        now, apart = time.monotonic(), 0.0 if load.lockstep else load.gap_ms / 1e3 / load.streams
        self._next = [(now + index * apart, index % len(self._lines)) for index in range(load.streams)]
        while self._ended < load.total + load.streams:
            self._begin_due()
            self._wake()

    def close(self) -> None:
        """Let go."""
        for line in self._lines:
            line.close()
        self._selector.close()

    def _line(self, index: int) -> Line:
        taken = partial(self._taken, index)
        if self.load.way == "h3":
            return Http3Line(self.load.port, taken)
        return Http1Line(self.load.port, taken, tls=self.load.way == "h1")

    def _begin_due(self) -> None:
        load, now = self.load, time.monotonic()
        due = [index for when, index in self._next if when <= now]
        self._next = [each for each in self._next if each[0] > now]
        for index in due:
            if self._begun < load.total + load.streams:
                counted = self._begun >= load.streams
                self._begun += 1
                stream = Stream(time.time_ns(), counted)
                self._open[index, self._lines[index].ask(self._body)] = stream

    def _taken(self, index: int, stream_id: int, came: int, data: bytes, ended: bool) -> None:
        stream = self._open[index, stream_id]
        *events, stream.rest = (stream.rest + data).split(b"\n\n")
        for event in events:
            at = event.find(_SENT)
            if at >= 0:
                self._token(stream, came, int(event[at + len(_SENT) : event.index(b"}", at)]))
        if ended:
            if stream.tokens != self.load.tokens:
                raise StreamError(f"a stream ended after {stream.tokens} of {self.load.tokens} tokens")
            del self._open[index, stream_id]
            self._ended += 1
            self._next.append((time.monotonic(), index))

    def _token(self, stream: Stream, came: int, sent: int) -> None:
        if stream.counted:
            if stream.tokens:
                self.seen.gaps.append(came - stream.last)
            else:
                self.seen.first.append(came - stream.asked)
            self.seen.ways.append(came - sent)
        stream.tokens += 1
        stream.last = came

    def _wake(self) -> None:
        now = time.monotonic()
        if now > self._deadline:
            raise StreamError(f"not done after {self.load.timeout_s:g} s: {len(self._open)} streams are open")
        timers = [timer for line in self._lines if (timer := line.timer) is not None]
        until = min([*timers, *(when for when, _ in self._next), self._deadline])
        woken = {key.data for key, _ in self._selector.select(max(0.0, until - now))}
        now = time.monotonic()
        woken |= {index for index, line in enumerate(self._lines) if line.timer is not None and line.timer <= now}
        for index in woken:
            self._lines[index].receive()


def measure(load: Load) -> Outcome:
    """One run."""
    run = Run(load)
    try:
        run.connect()
        cpu, start = cpu_seconds(load.pid) if load.pid else 0.0, time.monotonic()
        run.streams()
        elapsed = time.monotonic() - start
        tokens = (load.total + load.streams) * load.tokens
        outcome = Outcome(tokens_per_s=tokens / elapsed)
        if load.pid:
            outcome.server_cpu_us = (cpu_seconds(load.pid) - cpu) / tokens * 1e6
        seen = run.seen
        outcome.first_p50_ms, outcome.first_p99_ms = _quantiles(seen.first)
        outcome.gap_p50_ms, outcome.gap_p99_ms = _quantiles(seen.gaps)
        outcome.way_p50_ms, outcome.way_p99_ms = _quantiles(seen.ways)
        return outcome
    finally:
        run.close()


def _quantiles(nanoseconds: list[int]) -> tuple[float, float]:
    ordered = sorted(each / 1e6 for each in nanoseconds)
    return quantile(ordered, 0.5), quantile(ordered, 0.99)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, default=0, help="the gateway's process, for its CPU time")
    parser.add_argument("--streams", type=int, default=64, help="open at once")
    parser.add_argument("--total", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=25)
    parser.add_argument("--gap-ms", type=float, default=20)
    parser.add_argument("--lockstep", action="store_true")
    parser.add_argument("--timeout-s", type=float, default=60)
    try:
        print(json.dumps(asdict(measure(Load(**vars(parser.parse_args()))))))
    except (StreamError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
