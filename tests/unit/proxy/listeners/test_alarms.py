# SPDX-License-Identifier: Apache-2.0
"""One alarm for many timers; what a connection does with it is in test_quic.py."""

from __future__ import annotations

import asyncio
import time

from proxy.listeners.alarms import Alarms


class Connection:
    def __init__(self, name: str, rung: list[str]) -> None:
        self.name = name
        self.rung = rung

    def ring(self, now: float) -> None:
        self.rung.append(self.name)


async def test_everybody_is_rung_in_order_and_who_asked_for_never_is_not() -> None:
    alarms, rung = Alarms(time.monotonic), list[str]()
    late, early, never = (Connection(name, rung) for name in ("late", "early", "never"))
    now = time.monotonic()
    for connection, when in ((late, now + 0.02), (early, now + 0.01), (never, now + 0.015)):
        alarms.set(connection, when)
    alarms.set(never, None)
    async with asyncio.timeout(10):
        while len(rung) < 2:
            await asyncio.sleep(0.001)
    assert rung == ["early", "late"]


async def test_nobody_is_rung_after_the_end() -> None:
    alarms, rung = Alarms(time.monotonic), list[str]()
    alarms.set(Connection("only", rung), time.monotonic() + 0.005)
    alarms.close()
    await asyncio.sleep(0.02)
    assert rung == []


async def test_who_is_moved_later_is_rung_later_and_once() -> None:
    alarms, rung = Alarms(time.monotonic), list[str]()
    moved, other = Connection("moved", rung), Connection("other", rung)
    now = time.monotonic()
    alarms.set(moved, now + 0.005)
    alarms.set(moved, now + 0.03)
    alarms.set(other, now + 0.02)
    async with asyncio.timeout(10):
        while len(rung) < 2:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    assert rung == ["other", "moved"]
    assert time.monotonic() >= now + 0.03


async def test_who_is_moved_earlier_is_rung_then() -> None:
    alarms, rung = Alarms(time.monotonic), list[str]()
    moved = Connection("moved", rung)
    now = time.monotonic()
    alarms.set(moved, now + 3600)
    alarms.set(moved, now + 0.005)
    async with asyncio.timeout(10):
        while not rung:
            await asyncio.sleep(0.001)
    assert rung == ["moved"]
