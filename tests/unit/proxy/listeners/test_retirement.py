# SPDX-License-Identifier: Apache-2.0
"""Which connections of a worker that was replaced are closed, and which go on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from proxy.listeners.retirement import HANDSHAKE_S, QUIET_S, Retirement, due


@dataclass(eq=False)
class Connection:
    """As the listener has it."""

    heard: float = 0.0
    settled: bool = True
    speaks: bool = True
    told: list[str] = field(default_factory=list)

    def retire(self) -> None:
        self.told.append("move")


@pytest.mark.parametrize(
    ("connection", "now", "verdict"),
    [
        (Connection(heard=5.0), 10.0, "move"),
        (Connection(heard=5.0), 10.0 + QUIET_S, "close"),
        (Connection(heard=10.5), 10.0 + QUIET_S, "move"),
        (Connection(heard=5.0, settled=False), 100.0, "move"),
        (Connection(heard=5.0, speaks=False), 10.0 + QUIET_S, ""),
        (Connection(heard=5.0, speaks=False), 10.0 + HANDSHAKE_S, "close"),
        (Connection(heard=11.0, speaks=False), 10.0 + HANDSHAKE_S, ""),
    ],
)
def test_what_is_due(connection: Connection, now: float, verdict: str) -> None:
    assert due(now, 10.0, connection) == verdict


async def test_it_looks_until_it_is_told_not_to() -> None:
    connections = {Connection()}
    closed: list[Connection] = []
    now = 10.0

    def close(one: Connection) -> None:
        connections.discard(one)
        closed.append(one)

    retirement = Retirement(connections, close, clock=lambda: now)
    (one,) = connections
    assert one.told == ["move"] and not closed
    now = 12.0
    while not closed:
        await asyncio.sleep(0.01)
    assert not connections
    retirement.end()
