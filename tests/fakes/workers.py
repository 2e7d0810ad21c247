# SPDX-License-Identifier: Apache-2.0
"""Gateways of this process behind real channels, as a supervisor sees its workers; each can hang and die."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from proxy.supervise.channel import Channel, Handler, channel_pair

HUNG_S = 0.2
"""Instead of the real patience."""


class FakeWorker:
    """One end asks, the other has these handlers."""

    def __init__(self, place: int, handlers: Mapping[str, Handler]) -> None:
        self.name, self.place, self.pid = f"worker {place}", place, os.getpid()
        self.generation, self.state, self.current = 0, "ready", True
        self.hung = False
        ours, theirs = channel_pair()
        self._asking = Channel(ours)
        self._answering = Channel(theirs, handlers={kind: self._slow(answer) for kind, answer in handlers.items()})

    async def start(self) -> None:
        """Open both ends."""
        await self._asking.start()
        await self._answering.start()

    async def close(self) -> None:
        """Hang up."""
        await self._asking.close()
        await self._answering.close()

    async def ask(self, kind: str, payload: object = None, *, timeout_s: float) -> Any:
        """As a supervisor does."""
        return await self._asking.ask(kind, payload, timeout_s=HUNG_S if self.hung else 30.0)

    def _slow(self, answer: Handler) -> Handler:
        async def answered(payload: Any) -> object:
            if self.hung:
                await asyncio.sleep(3600)
            return await answer(payload)

        return answered


class FakeFleet:
    """Workers that come and go as a test says."""

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self._made = 0

    def living(self) -> Sequence[FakeWorker]:
        """All of them."""
        return tuple(self.workers)

    async def add(self, handlers: Mapping[str, Handler]) -> FakeWorker:
        """One more, ready."""
        self._made += 1
        worker = FakeWorker(self._made, handlers)
        await worker.start()
        self.workers.append(worker)
        return worker

    async def kill(self, worker: FakeWorker) -> None:
        """It is gone."""
        self.workers.remove(worker)
        await worker.close()

    async def close(self) -> None:
        """All are gone."""
        for each in list(self.workers):
            await self.kill(each)
