# SPDX-License-Identifier: Apache-2.0
"""A model whose runs end when the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from inferlane.errors import Reason, Refused
from inferlane.oip import Array

Compute = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_LONGEST_S = 60.0  # a forgotten gate fails the test instead of hanging it


def doubled(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """y is twice x, z is x."""
    return {"y": feeds["x"] * 2, "z": feeds["x"]}


class FakeModel:
    """Makes runs that compute at once, or while `hold` is on, only after `release`."""

    def __init__(self, compute: Compute = doubled) -> None:
        self.compute = compute
        self.feeds: list[dict[str, Array]] = []
        """What each run was given, in the order in which they began."""
        self.stopped = 0
        """How many runs were told to stop."""
        self.deaf = False
        """Whether runs go on nevertheless, as inside one long node."""
        self._loop = asyncio.get_running_loop()
        self._began = asyncio.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def new_run(self) -> FakeRun:
        return FakeRun(self)

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def began(self) -> None:
        """Wait until one more run has begun."""
        await self._began.acquire()

    def rows(self) -> list[int]:
        """How many rows each run had."""
        return [len(next(iter(feeds.values()))) for feeds in self.feeds]

    def begin(self, feeds: Mapping[str, Array]) -> None:
        self.feeds.append({name: np.array(array) for name, array in feeds.items()})
        self._loop.call_soon_threadsafe(self._began.release)
        assert self._open.wait(_LONGEST_S), "nobody released the run"


class FakeRun:
    """One run."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model
        self._stopped = False

    def __call__(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        self._model.begin(feeds)
        if self._stopped:
            raise Refused(Reason.BACKEND_FAILED, "stopped")
        computed = self._model.compute(feeds)
        return [computed[name] for name in outputs]

    def stop(self) -> None:
        self._stopped = True
        self._model.stopped += 1
        if not self._model.deaf:
            self._model.release()
