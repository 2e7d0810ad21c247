# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from inferlane.errors import Reason, Refused
from proxy.walk.eviction import Evictable


def refusal() -> Refused:
    return Refused(Reason.EVICTED, "for a higher class")


async def test_what_runs_is_ended_with_the_refusal():
    scope = Evictable(refusal())
    reached = asyncio.Event()

    async def walk() -> None:
        with scope:
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(walk())
    await reached.wait()
    assert repr(scope) == "<Evictable running>"
    scope.evict()
    scope.evict()  # once is enough
    with pytest.raises(Refused, match="for a higher class"):
        await task
    assert task.cancelling() == 0


async def test_what_is_over_is_not_ended():
    with Evictable(refusal()) as scope:
        pass
    scope.evict()
    await asyncio.sleep(0)


async def test_a_client_that_left_as_well_cancels_its_walk():
    scope = Evictable(refusal())

    async def walk() -> None:
        with scope:
            await asyncio.Event().wait()

    task = asyncio.create_task(walk())
    await asyncio.sleep(0)
    scope.evict()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_failure_on_the_way_out_is_told_as_it_is():
    scope = Evictable(refusal())

    async def walk() -> None:
        with scope:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise OSError("broken") from None

    task = asyncio.create_task(walk())
    await asyncio.sleep(0)
    scope.evict()
    with pytest.raises(OSError, match="broken"):
        await task


async def test_the_walk_goes_on_behind_the_scope():
    """The cancellation was used up by the refusal: what waits afterwards is not struck by it."""
    scope = Evictable(refusal())

    async def walk() -> str:
        try:
            with scope:
                await asyncio.Event().wait()
        except Refused:
            await asyncio.sleep(0)
            return "told the client"
        return ""

    task = asyncio.create_task(walk())
    await asyncio.sleep(0)
    scope.evict()
    assert await task == "told the client"
