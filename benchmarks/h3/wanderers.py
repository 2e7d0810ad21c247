# SPDX-License-Identifier: Apache-2.0
"""Clients that move from port to port while their requests are in flight, as NATs make them; one JSON object.

Nothing may be lost by moving: a connection that falls silent is given up, and its requests are counted. At half of the
requests a worker of the gateway may be killed; its connections are the only ones that may fall silent.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.h3.client import Client, LoadError
from benchmarks.h3.handshakes import connected

SILENT_S = 5.0
"""A connection that answers nothing for so long is gone."""
MOST_S = 600.0


@dataclass(slots=True)
class Wanderer:
    """One client, what it has asked, and when it was answered last."""

    client: Client
    moves_every: int
    heard: float = field(default_factory=time.monotonic)
    answered: int = 0

    def ask(self, count: int) -> None:
        """So many at once."""
        now = time.monotonic()
        for _ in range(count):
            self.client.request(now)
        self.client.flush(now)


class Crowd:
    """All of them, until so many requests are answered or lost."""

    def __init__(self, port: int, connections: int, at_once: int, moves_every: int) -> None:
        self._port = port
        self._at_once = at_once
        self._moves_every = moves_every
        self._selector = selectors.DefaultSelector()
        self.counts: Counter[str] = Counter(answered=0, lost=0, moves=0, connections_lost=0)
        self._wanderers: list[Wanderer] = []
        for _ in range(connections):
            self._join()

    def run(self, requests: int, halfway: list[int]) -> None:
        """halfway: a process to kill then, if there is one in it."""
        give_up = time.monotonic() + MOST_S
        for each in self._wanderers:
            each.ask(self._at_once)
        while self.counts["answered"] + self.counts["lost"] < requests:
            if time.monotonic() > give_up:
                raise LoadError(f"not done after {MOST_S:g} s: {dict(self.counts)}")
            if halfway and self.counts["answered"] >= requests // 2:
                os.kill(halfway.pop(), signal.SIGKILL)
            self._turn()

    def _join(self) -> None:
        wanderer = Wanderer(connected(self._port), self._moves_every)
        self._selector.register(wanderer.client.socket, selectors.EVENT_READ)
        self._wanderers.append(wanderer)

    def _turn(self) -> None:
        self._selector.select(0.02)
        now = time.monotonic()
        for each in list(self._wanderers):
            timer = each.client.quic.get_timer()
            if timer is not None and timer <= now:
                each.client.quic.handle_timer(now)
            answered = len(each.client.receive(now))
            if answered:
                each.heard = now
                self._answered(each, answered)
            each.client.flush(now)
            if now - each.heard > SILENT_S:
                self._lost(each)

    def _answered(self, each: Wanderer, count: int) -> None:
        self.counts["answered"] += count
        before, each.answered = each.answered, each.answered + count
        each.ask(count)
        if before // each.moves_every != each.answered // each.moves_every:
            self._selector.unregister(each.client.socket)
            each.client.move()
            self._selector.register(each.client.socket, selectors.EVENT_READ)
            self.counts["moves"] += 1

    def _lost(self, each: Wanderer) -> None:
        self.counts["lost"] += len(each.client.started)
        self.counts["connections_lost"] += 1
        self._selector.unregister(each.client.socket)
        each.client.close()
        self._wanderers.remove(each)
        self._join()
        self._wanderers[-1].ask(self._at_once)


def _workers(admin: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"http://{admin}/v1/workers", timeout=10) as page:
        found: list[dict[str, Any]] = json.load(page)["workers"]
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=4, help="requests in flight on each connection")
    parser.add_argument("--moves-every", type=int, default=50, help="answers, then a client has another port")
    parser.add_argument("--kill", metavar="HOST:PORT", help="the gateway's admin address: one of its workers is killed")
    given = parser.parse_args()
    try:
        crowd = Crowd(given.port, given.connections, given.at_once, given.moves_every)
        crowd.run(given.requests, [_workers(given.kill)[0]["pid"]] if given.kill else [])
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(crowd.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
