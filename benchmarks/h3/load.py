# SPDX-License-Identifier: Apache-2.0
"""An HTTP/3 client that keeps a fixed number of requests in flight and prints what they cost, as one JSON object.

Closed loop: each answer is followed by the next request on its connection. CPU time of the server's processes is read
from /proc right before and after the counted requests; handshakes and the warm-up before them are not counted.
"""

from __future__ import annotations

import argparse
import json
import selectors
import sys
import time
from dataclasses import asdict, dataclass, field

from benchmarks.h3.client import Client, Exchange, LoadError
from benchmarks.processes import cpu_seconds, quantile, resident_kib


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the server."""

    port: int
    requests: int
    warmup: int
    connections: int
    in_flight: int
    """Over all connections."""
    timeout_s: float
    pid: int
    """The server's; its descendants count too."""
    samples: int
    """How often the server's memory is read during the run."""
    body: int
    answer: int


@dataclass(slots=True)
class Outcome:
    """What the counted requests cost."""

    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    server_cpu_us: float = 0.0
    client_cpu_us: float = 0.0
    resident_kib: list[int] = field(default_factory=list)


class Run:
    """Connections to one server, and the requests that go over them."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.deadline = time.monotonic() + load.timeout_s
        exchange = Exchange(load.body, load.answer)
        self.clients = [Client(load.port, exchange) for _ in range(load.connections)]
        self.selector = selectors.DefaultSelector()
        for client in self.clients:
            self.selector.register(client.socket, selectors.EVENT_READ, client)
            client.flush(time.monotonic())

    def connect(self) -> None:
        """All handshakes."""
        while not all(client.ready for client in self.clients):
            for client in self._wake():
                client.receive(time.monotonic())
                client.flush(time.monotonic())

    def requests(self, total: int, memory: list[int] | None = None) -> list[float]:
        """Keep the wanted number in flight until `total` were answered; each one's latency in seconds."""
        latencies: list[float] = []
        left = total
        sample_every = max(1, total // max(1, self.load.samples))
        for index in range(min(self.load.in_flight, total)):
            self.clients[index % len(self.clients)].request(time.monotonic())
            left -= 1
        for client in self.clients:
            client.flush(time.monotonic())
        while len(latencies) < total:
            for client in self._wake():
                now = time.monotonic()
                for sent in client.receive(now):
                    latencies.append(now - sent)
                    if left:
                        client.request(now)
                        left -= 1
                    if memory is not None and len(latencies) % sample_every == 0:
                        memory.append(resident_kib(self.load.pid))
                client.flush(now)
        return latencies

    def close(self) -> None:
        """Tell the server, and let go."""
        for client in self.clients:
            client.close()
        self.selector.close()

    def _wake(self) -> set[Client]:
        now = time.monotonic()
        if now > self.deadline:
            waiting = sum(len(client.started) for client in self.clients)
            raise LoadError(f"not done after {self.load.timeout_s:g} s: {waiting} requests wait for an answer")
        timers = [timer for client in self.clients if (timer := client.quic.get_timer()) is not None]
        ready = self.selector.select(max(0.0, min([*timers, self.deadline]) - now))
        woken = {key.data for key, _ in ready}
        now = time.monotonic()
        for client in self.clients:
            if (timer := client.quic.get_timer()) is not None and timer <= now:
                client.quic.handle_timer(now)
                woken.add(client)
        return woken


def measure(load: Load) -> Outcome:
    """One run."""
    run = Run(load)
    try:
        run.connect()
        run.requests(load.warmup)
        outcome = Outcome()
        memory = outcome.resident_kib if load.samples else None
        server, client, start = cpu_seconds(load.pid), time.process_time(), time.monotonic()
        latencies = sorted(run.requests(load.requests, memory))
        elapsed = time.monotonic() - start
        outcome.server_cpu_us = (cpu_seconds(load.pid) - server) / load.requests * 1e6
        outcome.client_cpu_us = (time.process_time() - client) / load.requests * 1e6
        outcome.requests_per_s = load.requests / elapsed
        outcome.p50_ms = quantile(latencies, 0.5) * 1e3
        outcome.p99_ms = quantile(latencies, 0.99) * 1e3
        return outcome
    finally:
        run.close()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=32, help="over all connections")
    parser.add_argument("--body", type=int, default=1000, help="bytes of a request's body")
    parser.add_argument("--answer", type=int, default=200, help="bytes of an answer's body: 200, 65536 or 1048576")
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--samples", type=int, default=0, help="read the server's memory this often")
    try:
        print(json.dumps(asdict(measure(Load(**vars(parser.parse_args()))))))
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
