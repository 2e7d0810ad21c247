# SPDX-License-Identifier: Apache-2.0
"""All are asked at once; who does not answer holds up nobody."""

from __future__ import annotations

from typing import Any

from proxy.supervise.asking import ask_all, silent
from tests.fakes.workers import FakeFleet


async def answer(payload: Any) -> Any:
    return payload


async def complain(_: Any) -> Any:
    raise ValueError("not today")


async def test_each_says_its_own_and_who_does_not_is_named():
    fleet = FakeFleet()
    for handler in (answer, complain, answer, answer):
        await fleet.add({"echo": handler})
    fleet.workers[2].hung = True
    await fleet.workers[3].close()
    heard = await ask_all(fleet.living(), "echo", {"a": 1})
    assert [each.payload for each in heard] == [{"a": 1}, None, None, None]
    assert [each.partition(":")[0] for each in silent(heard)] == ["worker 2", "worker 3", "worker 4"]
    assert "not today" in silent(heard)[0]
    assert "no answer within" in silent(heard)[1]
    await fleet.close()
