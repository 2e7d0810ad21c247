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
