# SPDX-License-Identifier: Apache-2.0
"""The process that runs the `onnx:` endpoints of a gateway with several workers: started, watched, started again.

One process has the models' memory once and makes batches of what all workers ask. While it is gone, its endpoints fail
as any server's do; workers find it again at the same sockets.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Literal

import msgspec
import structlog

from backends.errors import BackendError
from backends.pool_settings import PoolSettings
from proxy.supervise.generation import watch
from proxy.supervise.models_start import Model, ModelsStart, classes_of, local_models, models_of
from proxy.supervise.worker_process import HandedWorker, WorkerFailedError, WorkerProcess, spawned
from qos.settings import ClassSettings

__all__ = ["Handed", "Models", "pause_s"]

DRAIN_S = 35.0
"""Longest wait for its end: as long as requests may take to finish, and then some."""
LONGEST_PATH = 100
"""Bytes of a socket's path; sockaddr_un has 108 (unix(7)), and other systems fewer."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
WELL_S = 60.0
"""Who lived for so long is started again as if it had never died."""
_log = structlog.get_logger("inferlane.models")


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What another program needs to go on with a process that this one has started."""

    child: HandedWorker
    folder: str
    restarts: int


def pause_s(failures: int, rng: random.Random) -> float:
    """Before the next start, after so many deaths in a row."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 20)) * rng.uniform(0.75, 1.25))


class Models:
    """One process at a time, from `start` to `close`. max_body: longest body of a request, as the doors have it."""

    def __init__(
        self,
        pools: Sequence[PoolSettings],
        classes: Sequence[ClassSettings],
        *,
        state_dir: Path,
        max_body: int,
        log_format: Literal["json", "console"],
        generation: int = 0,
    ) -> None:
        self._pools = pools
        self._classes = classes_of(classes)
        self._state_dir = state_dir
        self._max_body = max_body
        self._log_format = log_format
        self._generation = generation
        self._folder: Path | None = None
        self._models: list[Model] = []
        self._child: WorkerProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self.restarts = 0

    def __repr__(self) -> str:
        return f"<Models {len(self._models)} at {self._folder}, {self._child!r}>"

    @property
    def needed(self) -> bool:
        """Whether there is a model to run at all."""
        return any(True for _ in local_models(self._pools))

    @property
    def sockets(self) -> dict[tuple[str, int], Path]:
        """Where each endpoint answers, by pool and place among its endpoints."""
        return {(each.pool, each.index): Path(each.path) for each in self._models}

    @property
    def pid(self) -> int | None:
        """Of the process; None: there is none now."""
        return None if self._child is None or self._child.gone else self._child.pid

    def missing(self) -> list[str]:
        """What keeps the gateway from serving; nothing: all models answer."""
        well = self._child is not None and not self._child.gone and self._child.state == "ready"
        return ["models"] if self.needed and not well else []

    def links(self) -> list[WorkerProcess]:
        """Who can be asked what it uses of the machine."""
        return [self._child] if self._child is not None and not self.missing() else []

    async def start(self) -> None:
        """Until all models answer. Raises BackendError, one line for people; nothing is left behind."""
        if not self.needed:
            return
        self._folder = _private_folder(self._state_dir)
        self._models = models_of(self._pools, self._folder)
        try:
            await self._spawn()
        except BaseException:
            await self.close()
            raise
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """It finishes what it has and ends; its sockets and their directory go."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._child is not None:
            self._child.signal(signal.SIGTERM)
            await self._child.end(within_s=DRAIN_S)
            self._child = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def use_classes(self, classes: Sequence[ClassSettings]) -> None:
        """They have changed."""
        self._classes = classes_of(classes)
        if self._child is not None:
            self._child.tell("classes", [msgspec.to_builtins(each) for each in self._classes])

    def use_log_format(self, log_format: Literal["json", "console"]) -> None:
        """It has changed."""
        self._log_format = log_format
        if self._child is not None:
            self._child.tell("log_format", log_format)

    def handed(self) -> Handed | None:
        """For another program in this process, whose child it stays. None: there is nothing to go on with."""
        if self._child is None or self._child.gone or self._child.state != "ready":
            return None
        return Handed(child=self._child.handed(), folder=str(self._folder), restarts=self.restarts)

    async def adopt(self, handed: Handed) -> None:
        """Instead of `start`: go on with what another program has started."""
        self._folder = Path(handed.folder)
        self._models = models_of(self._pools, self._folder)
        self.restarts = handed.restarts
        self._child = await WorkerProcess.adopt(handed.child, generation=self._generation)
        self._watching = asyncio.create_task(self._watch())

    async def _spawn(self) -> None:
        try:
            self._child = child = self._started()
        except OSError as error:
            raise BackendError(f"the models' process cannot be started: {error.strerror or error}") from None
        await child.open()
        start = ModelsStart(
            models=self._models,
            classes=self._classes,
            max_body=self._max_body,
            log_format=self._log_format,
            name=child.name,
        )
        child.tell("start", msgspec.to_builtins(start))
        try:
            await child.ready()
        except WorkerFailedError as error:
            raise BackendError(str(error)) from None

    def _started(self) -> WorkerProcess:
        process, ours = spawned("proxy.supervise.models_child")
        name = f"models {self._generation}.{self.restarts}"
        return WorkerProcess.of(process, ours, name=name, place=-1, generation=self._generation)

    async def _watch(self) -> None:
        rng = random.Random()
        failures = 0
        while True:
            assert self._child is not None
            since = monotonic()
            watching = asyncio.create_task(watch(self._child))
            try:
                code = await self._child.exit_code()
            finally:
                watching.cancel()
            failures = 0 if monotonic() - since > WELL_S else failures
            while True:
                pause = pause_s(failures, rng)
                _log.error("models_died", exit_code=code, restarts=self.restarts, again_in_s=round(pause, 2))
                await asyncio.sleep(pause)
                self.restarts, failures = self.restarts + 1, failures + 1
                try:
                    await self._spawn()
                    break
                except BackendError as error:
                    _log.error("models_failed", detail=str(error))
                    if self._child is not None:
                        code = await self._child.exit_code()
            _log.info("models_back", pid=self.pid, restarts=self.restarts)


def _private_folder(state_dir: Path) -> Path:
    """A directory for nobody else (mkdtemp makes it 0700), with a path that leaves room for a socket's name."""
    with suppress(OSError):
        state_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="models-", dir=state_dir))
        if len(os.fsencode(folder)) <= LONGEST_PATH - len("65535.sock/"):
            return folder
        folder.rmdir()
    try:
        return Path(tempfile.mkdtemp(prefix="inferlane-models-"))
    except OSError as error:
        raise BackendError(f"no directory for the models' sockets: {error.strerror or error}") from None
