# SPDX-License-Identifier: Apache-2.0
"""Several workers on one address, as the kernel steers to them, all on the test's own loop. The backend is an echo."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from proxy.certificate import development_certificate
from proxy.keys import Keys
from proxy.listeners.alarms import Alarms
from proxy.listeners.http3 import Http3Session
from proxy.listeners.quic import QuicListener
from proxy.listeners.udp import UdpSocket, bind
from proxy.quic.configuration import QuicConfiguration, server_configuration
from proxy.quic.connection_ids import ConnectionIds
from proxy.steering.group import Group
from proxy.steering.program import Steering
from tests.fakes.walk import MARKS, FakeWalk, echo


@dataclass(slots=True)
class Worker:
    """One place's socket and listener."""

    socket: UdpSocket
    listener: QuicListener
    alarms: Alarms
    walk: FakeWalk


class Workers:
    """A group of sockets; a worker at each place that one was started for."""

    def __init__(self, configuration: QuicConfiguration, places: int) -> None:
        self.keys = Keys.fresh()
        self.group = Group.bind("127.0.0.1", 0, places, bind=bind)
        self.address = self.group.address
        self.workers: dict[int, Worker] = {}
        self._configuration = configuration
        self._ended: Counter[str] = Counter()

    def start(self, places: Iterable[int], generation: int = 0) -> None:
        """A worker at each of these places, which then get what is new; the others go on with what they have."""
        current = list(places)
        for place in current:
            self._start(place, generation)
        self.steer(range(current[0], current[-1] + 1))

    def steer(self, current: range) -> None:
        """Replace the program, and tell everybody who else lives."""
        others = [range(place, place + 1) for place in self.workers if place not in current]
        self.group.steer(Steering(self.keys.steering, current, others))
        for place, worker in self.workers.items():
            worker.listener.siblings = frozenset(self.workers) - {place}

    def crash(self, place: int, generation: int = 0) -> None:
        """kill -9, and another in its place: not a word to its clients."""
        worker = self.workers.pop(place)
        worker.alarms.close()
        worker.socket.close()
        self._start(place, generation)

    @property
    def counts(self) -> Counter[str]:
        """Of all workers, those of now."""
        return sum((worker.listener.counts for worker in self.workers.values()), Counter[str]())

    def served(self) -> dict[int, int]:
        """Requests by place."""
        return {place: len(worker.walk.arrivals) for place, worker in self.workers.items()}

    def close(self) -> None:
        """All of them."""
        for worker in self.workers.values():
            worker.listener.close()
            worker.alarms.close()
            worker.socket.close()
        self.group.close()

    def _start(self, place: int, generation: int) -> None:
        alarms, walk = Alarms(time.monotonic), FakeWalk(echo)
        listener = QuicListener(
            self._configuration,
            lambda peer, alpn: Http3Session(peer, walk, listener="main", max_body=1 << 20, clock=time.monotonic),
            alarms=alarms,
            clock=time.monotonic,
            datagrams=False,
            marks=MARKS,
            name="main",
            ids=ConnectionIds(place, generation, self.keys.steering),
            keys=self.keys,
        )
        # A worker's own descriptor; the group's stays open, and keeps the place.
        sock = UdpSocket(self.group.sockets[place].dup(), listener.receive, burst_ended=listener.burst_ended)
        listener.attach(sock.send_all)
        self.workers[place] = Worker(sock, listener, alarms, walk)


@asynccontextmanager
async def workers(state_dir: Path, *, places: int) -> AsyncIterator[Workers]:
    """With the development certificate."""
    found = Workers(server_configuration(*development_certificate(state_dir), ["h3"]), places)
    try:
        yield found
    finally:
        found.close()
