# SPDX-License-Identifier: Apache-2.0
"""New connections, one after the other, full or resumed; or many that stay and say nothing. One JSON object.

A handshake is counted from the first packet until the client has closed the connection again, so what the server spends
on remembering and forgetting it is in the figure.
"""

from __future__ import annotations

import argparse
import json
import selectors
import sys
import time
from collections.abc import Sequence
from typing import Any

from aioquic.tls import SessionTicket

from benchmarks.h3.client import Client, LoadError
from benchmarks.processes import cpu_seconds, resident_kib

WARM_UP = 20
PATIENCE_S = 10.0
SETTLED_S = 2.0
"""Until the last acknowledgements and session tickets of new connections are through."""


def connected(port: int, ticket: SessionTicket | None = None, tickets: list[SessionTicket] | None = None) -> Client:
    """One handshake. tickets: gets what the server sends, which is waited for."""
    client = Client(port, keep=None if tickets is None else tickets.append, ticket=ticket)
    until = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        selector.register(client.socket, selectors.EVENT_READ)
        client.flush(time.monotonic())
        while not client.ready or (tickets is not None and not tickets):
            client.wait(selector, until)
    return client


def handshakes(port: int, pid: int, count: int, *, resume: bool) -> dict[str, Any]:
    """So many connections, each closed before the next."""
    ticket = None
    if resume:
        tickets: list[SessionTicket] = []
        try:
            connected(port, tickets=tickets).close()
        except LoadError:
            return {"server_cpu_us": None, "resumed": 0}  # it hands out no tickets
        ticket = tickets[-1]
    resumed = 0
    cpu = 0.0
    for index in range(WARM_UP + count):
        if index == WARM_UP:
            cpu, resumed = cpu_seconds(pid), 0
        client = connected(port, ticket)
        resumed += client.resumed
        client.close()
    time.sleep(SETTLED_S / 10)
    return {"server_cpu_us": (cpu_seconds(pid) - cpu) / count * 1e6, "resumed": resumed}


def idle(port: int, pid: int, count: int) -> dict[str, Any]:
    """So many connections at once, and what each keeps in the server, KiB."""
    first = [connected(port) for _ in range(WARM_UP)]
    time.sleep(SETTLED_S)
    before = resident_kib(pid)
    rest = [connected(port) for _ in range(count)]
    _answer_for(SETTLED_S, rest)
    kept = (resident_kib(pid) - before) / count
    for client in (*first, *rest):
        client.close()
    return {"kib_per_connection": kept}


def _answer_for(seconds: float, clients: Sequence[Client]) -> None:
    """Acknowledge what still comes."""
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        for client in clients:
            client.receive(now)
            client.flush(now)
        time.sleep(0.1)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--resume", action="store_true", help="resume a session each time")
    parser.add_argument("--idle", action="store_true", help="leave them open, and read the server's memory")
    given = parser.parse_args()
    try:
        if given.idle:
            outcome = idle(given.port, given.pid, given.count)
        else:
            outcome = handshakes(given.port, given.pid, given.count, resume=given.resume)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
