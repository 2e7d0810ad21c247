# SPDX-License-Identifier: Apache-2.0
"""CPU of our QUIC transport alone: a plain aioquic client and a server connection in one process, no socket.

    python -m benchmarks.engine [CASE...]

Prints microseconds of the server's calls, per request or handshake, for bare aioquic and for ours: the least of many
short rounds that take turns, so that what else runs on the machine touches both alike. The calls are those of the
listener: receive each datagram of a wake-up, take the events, write replies, look whether it is quiet, send, timer.
"""

from __future__ import annotations

import gc
import ssl
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived

from proxy.certificate import development_certificate
from proxy.keys import Keys
from proxy.quic.configuration import server_configuration
from proxy.quic.connection import Connection
from proxy.quic.connection_ids import ConnectionIds
from proxy.quic.identity import Identity

CLIENT, SERVER = ("192.0.2.1", 40000), ("192.0.2.2", 4433)
REQUEST, REPLY = bytes(1060), bytes(230)
MIB = 1 << 20
ROUNDS = 30
HOP_S = 0.0002
Build = Callable[[QuicConfiguration, bytes], Any]


def bare(configuration: QuicConfiguration, cid: bytes) -> QuicConnection:
    """aioquic as it comes."""
    return QuicConnection(configuration=configuration, original_destination_connection_id=cid)


@cache
def _identity(certificate: object) -> Identity:
    return Identity(ConnectionIds(), Keys.fresh(), QuicConfiguration(is_client=False, certificate=certificate))


def ours(configuration: QuicConfiguration, cid: bytes) -> Connection:
    """The gateway's."""
    return Connection(configuration, cid, datagrams=False, identity=_identity(configuration.certificate))


class Link:
    """One connection. cpu_s: what the server's calls took since it was last set to 0."""

    def __init__(self, configuration: QuicConfiguration, build: Build, size: int = len(REPLY)) -> None:
        client = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="localhost")
        client.verify_mode = ssl.CERT_NONE
        client.max_data = client.max_stream_data = 16 * MIB
        self.now, self.cpu_s, self.replies = 100.0, 0.0, 0
        self._reply = bytes(size)
        self.client = QuicConnection(configuration=client)
        self.client.connect(SERVER, now=self.now)
        start = time.thread_time()
        self.server = build(configuration, self.client.original_destination_connection_id)
        self.cpu_s += time.thread_time() - start
        self._quiet = getattr(self.server, "quiet", lambda now: False)
        self._consume = getattr(self.server, "consume", lambda stream_id, count: False)
        for _ in range(5):
            self.turn()

    def turn(self, *, answers: bool = True) -> None:
        """What the client says, and what the server says to it."""
        self.now += HOP_S
        client = self.client
        timer = client.get_timer()
        if timer is not None and timer <= self.now:
            client.handle_timer(self.now)
        said = [datagram for datagram, _ in client.datagrams_to_send(self.now)]
        self.now += HOP_S
        start = time.thread_time()
        answered = self._serve(said, answers=answers)
        self.cpu_s += time.thread_time() - start
        self.now += HOP_S
        for datagram, _ in answered:
            client.receive_datagram(datagram, SERVER, self.now)
        while (event := client.next_event()) is not None:
            self.replies += isinstance(event, StreamDataReceived) and event.end_stream

    def _serve(self, said: list[bytes], *, answers: bool) -> list[Any]:
        server, now, asked = self.server, self.now, []
        for datagram in said:
            server.receive_datagram(datagram, CLIENT, now)
        while (event := server.next_event()) is not None:
            if type(event) is StreamDataReceived:
                self._consume(event.stream_id, len(event.data))
                if event.end_stream:
                    asked.append(event.stream_id)
        answered = self._flush() if said else []  # the flush behind the burst, while the backend works
        if asked and answers:
            for stream_id in asked:
                server.send_stream_data(stream_id, self._reply, True)
            answered += self._flush()
        timer = server.get_timer()
        if timer is not None and timer <= now:
            server.handle_timer(now)
            answered += self._flush()
        return answered

    def _flush(self) -> list[Any]:
        answered = [] if self._quiet(self.now) else self.server.datagrams_to_send(self.now)
        self.server.get_timer()
        return answered

    def ask(self, body: bytes = REQUEST) -> int:
        """Open a stream with a request."""
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_stream_data(stream_id, body, end_stream=True)
        return stream_id

    def until(self, replies: int) -> float:
        """Go on until so many replies are whole -> seconds of the server's CPU each."""
        self.cpu_s, self.replies = 0.0, 0
        turns = 0
        while self.replies < replies:
            self.turn()
            turns += 1
            assert turns < 10_000, "the link has stalled"
        return self.cpu_s / replies


def one(link: Link) -> float:
    """One request in flight."""
    spent = 0.0
    for _ in range(20):
        link.ask()
        spent += link.until(1)
    return spent / 20


def many(link: Link) -> float:
    """64 in flight on one connection, written at once."""
    for _ in range(64):
        link.ask()
    return link.until(64)


def beside(link: Link) -> float:
    """One in flight beside 60 open streams that wait for their backend."""
    if len(link.server._streams) < 60:
        for _ in range(60):
            link.client.send_stream_data(link.client.get_next_available_stream_id(), REQUEST)
        for _ in range(60):
            link.turn()
    return one(link)


def up(link: Link) -> float:
    """1 MiB towards the server."""
    link.ask(bytes(MIB))
    return link.until(1)


CASES: dict[str, tuple[Callable[[Link], float], int]] = {
    "1 in flight": (one, len(REPLY)),
    "64 in flight": (many, len(REPLY)),
    "1 beside 60 open": (beside, len(REPLY)),
    "1 MiB up": (up, len(REPLY)),
    "1 MiB down": (one, MIB),
}


def handshake_us(configuration: QuicConfiguration, build: Build) -> float:
    """A handshake from the first packet to its confirmation."""
    return Link(configuration, build).cpu_s * 1e6


def idle_bytes(configuration: QuicConfiguration, build: Build) -> float:
    """Memory of a connection that has answered one request, without what all share and what the client keeps."""

    def grown() -> tuple[int, Any]:
        link = Link(configuration, build)
        link.ask()
        link.until(1)
        for _ in range(30):
            link.turn()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        link.server = link._quiet = link._consume = None
        gc.collect()
        return before - tracemalloc.get_traced_memory()[0], link

    tracemalloc.start()
    try:
        return min(grown()[0] for _ in range(5))
    finally:
        tracemalloc.stop()


def measure(configuration: QuicConfiguration, builds: dict[str, Build], wanted: list[str]) -> None:
    """Print one line a case."""
    print(f"{'':20}" + "".join(f"{name:>12}" for name in builds))
    for case, (run, size) in CASES.items():
        if wanted and case not in wanted:
            continue
        links = {name: Link(configuration, build, size) for name, build in builds.items()}
        rounds = ROUNDS if "MiB" not in case else 4
        best = dict.fromkeys(builds, 1e9)
        for _ in range(rounds):
            for name, link in links.items():
                best[name] = min(best[name], run(link) * 1e6)
        print(f"{case:20}" + "".join(f"{best[name]:9.1f} us" for name in builds), flush=True)
    if not wanted or "handshake" in wanted:
        least = dict.fromkeys(builds, 1e9)
        for _ in range(4 * ROUNDS):
            for name, build in builds.items():
                least[name] = min(least[name], handshake_us(configuration, build))
        print(f"{'handshake':20}" + "".join(f"{least[name]:9.1f} us" for name in builds), flush=True)
    if not wanted or "idle" in wanted:
        held = {name: idle_bytes(configuration, build) for name, build in builds.items()}
        print(f"{'idle connection':20}" + "".join(f"{held[name] / 1024:8.1f} KiB" for name in builds), flush=True)


def main() -> None:
    """Measure all cases, or those named."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = server_configuration(*development_certificate(Path(folder)), ["h3"])
        gc.freeze()
        measure(configuration, {"aioquic": bare, "ours": ours}, sys.argv[1:])


if __name__ == "__main__":
    main()
