# SPDX-License-Identifier: Apache-2.0
"""`inferlane run`: the process that binds all doors, starts the workers behind them, replaces those that die, and ends.

It serves nobody itself but the admin's pages, so it needs neither a QUIC stack nor a model runtime, and stays small.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from backends.ledger.segment import Ledger
from proxy import keeper, privileges
from proxy.config.loading import Config
from proxy.config.settings import MOST_WORKERS
from proxy.control import Control
from proxy.keys import Keys
from proxy.listeners.tcp import more_descriptors
from proxy.steering.program import Steering
from proxy.supervise.generation import Generation
from proxy.supervise.models import Models
from proxy.supervise.reloading import RunningConfig
from proxy.supervise.sockets import Sockets
from proxy.supervise.start import ConfigText, LedgerPlace, Start
from proxy.supervise.view import View
from proxy.supervise.worker_process import WorkerProcess
from proxy.telemetry import logs
from proxy.telemetry.admin import AdminServer

__all__ = ["Supervisor", "run", "workers_of"]

BANKS = 2
"""Generations that may live at once: one that serves and one that drains."""
_log = structlog.get_logger("inferlane.supervisor")


def workers_of(config: Config) -> int:
    """How many processes the config asks for."""
    if config.workers == "auto":
        return min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    return config.workers


class Supervisor:
    """Everything that is there once. `start` opens all or nothing; `close` undoes it."""

    def __init__(self, config: Config, text: ConfigText, *, state_dir: Path) -> None:
        self.running = RunningConfig(config, text, self._processes)
        self._models = _models(config, state_dir)
        models = self._models
        self.view = View(
            self._processes,
            restarts=self._restarts,
            missing=tuple if models is None else models.missing,
            also=tuple if models is None else models.links,
            pools=[f"pool {each.name}" for each in config.pools],
        )
        self._state_dir = state_dir
        self._count = workers_of(config)
        self._keys, self._keys_kept = _keys(state_dir)
        self._ledger = Ledger.create(BANKS * self._count) if self._count > 1 else None
        self._sockets: Sockets | None = None
        self._generations: list[Generation] = []
        bind = config.admin.bind
        self._admin = AdminServer(bind.host, bind.port, self.view.page, self.view.not_ready, self.view.documents)
        self._opened = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Supervisor {self._generations!r}>"

    async def start(self) -> None:
        """Doors bound, workers ready. Raises WorkerFailedError or OSError with one line for people."""
        config = self.running.config
        async with AsyncExitStack() as opening:
            if self._ledger is not None:
                opening.callback(self._ledger.close)
            opening.push_async_callback(self._admin.close)
            await self._admin.start()
            self._sockets = Sockets.bind(config.listeners, places=self._count)
            opening.callback(self._sockets.close)
            if self._models is not None:
                opening.push_async_callback(self._models.close)
                await self._models.start()
            first = Generation(0, range(self._count), self._document, greet=self.view.joined, left=self._left)
            self._sockets.steer(Steering(key=self._keys.steering, current=first.places))
            self._generations.append(first)
            opening.push_async_callback(first.end)
            await first.start()
            if config.admin.socket is not None:
                control = Control(config.admin.socket, self.view.commands)
                opening.push_async_callback(control.close)
                await control.start()
            self._opened = opening.pop_all()

    def announce(self) -> None:
        """Say in the log where it listens: from here on it is meant to be found."""
        assert self._sockets is not None
        if not self._keys_kept:
            detail = f"{self._state_dir} cannot be written; after a restart clients learn late that it was one"
            _log.warning("keys_not_kept", detail=detail)
        for listener, addresses in self._sockets.addresses.items():
            _log.info("listening", listener=listener, addresses=[f"{host}:{port}" for host, port in addresses])
        _log.info("admin_listening", address="{}:{}".format(*self._admin.bound))

    async def drain(self) -> None:
        """Have all workers finish what they have, and end."""
        assert self._sockets is not None
        self.view.draining = True
        self._sockets.hang_up()
        in_flight = await asyncio.gather(*(each.drain() for each in self._generations))
        _log.info("draining", in_flight=sum(in_flight))
        unfinished = await asyncio.gather(*(each.drained() for each in self._generations))
        _log.info("drained", unfinished=sum(unfinished))

    async def close(self) -> None:
        """End everything that is still there."""
        await self._opened.aclose()

    def _document(self, place: int) -> Start:
        assert self._sockets is not None
        ledger = self._ledger
        return Start(
            config=self.running.text,
            state_dir=str(self._state_dir),
            place=place,
            generation=self._generations[-1].number,
            siblings=[each for each in range(self._count) if each != place],
            sockets=self._sockets.at(place),
            keys=self._keys.to_bytes(),
            models=[]
            if self._models is None
            else [(pool, number, str(path)) for (pool, number), path in self._models.sockets.items()],
            ledger=None
            if ledger is None
            else LedgerPlace(fd=ledger.fd, event_fds=list(ledger.event_fds), row=place % ledger.rows),
        )

    async def reload(self) -> Config | None:
        """SIGHUP. None: nothing has changed."""
        merged = await self.running.reload()
        if merged is None:
            return None
        if self._models is not None and "classes" in merged.changed:
            self._models.use_classes(merged.config.classes)
        return merged.config

    def _left(self, worker: WorkerProcess) -> None:
        if self._ledger is not None:
            self._ledger.clear_row(worker.place % self._ledger.rows)
        self.view.departed(worker)

    def _processes(self) -> list[WorkerProcess]:
        return [worker for each in self._generations for worker in each.workers]

    def _restarts(self) -> dict[int, int]:
        return {place: count for each in self._generations for place, count in each.restarts.items()}


async def run(config: Config, *, text: str, conf: Path, state_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT, drain, return. text: of the file `conf`, from which the config was read."""
    logs.configure(config.log.format, config.log.level)
    more_descriptors()
    # The order is the point: the helper starts with all rights, and before a door opens nobody else has them.
    keeping = keeper.spawn(config.link_policy(), state_dir)
    privileges.drop(privileges.kept(_ports(config), root=os.geteuid() == 0))
    stop, hangup = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)  # while models load, it can wait
    try:
        started = ConfigText(path=str(conf), started=text, helped=keeping is not None)
        supervisor = Supervisor(config, started, state_dir=state_dir)
        if keeping is not None:
            await keeping.start(supervisor.view.show_links)
        await supervisor.start()
        # Only now: a signal while models load has nothing to finish, and may end the process as it always does.
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        supervisor.announce()
        reloading = asyncio.create_task(_whenever(hangup, lambda: _reload(supervisor, keeping)))
        try:
            await stop.wait()
            await supervisor.drain()
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
            await supervisor.close()
    finally:
        if keeping is not None:
            await keeping.close()


async def _whenever(happens: asyncio.Event, act: Callable[[], Awaitable[None]]) -> None:
    """One after another; signals that come meanwhile are one."""
    while True:
        await happens.wait()
        happens.clear()
        await act()


async def _reload(supervisor: Supervisor, keeping: keeper.Keeper | None) -> None:
    config = await supervisor.reload()
    if config is not None and keeping is not None:
        keeping.use_policy(config.link_policy())


def _models(config: Config, state_dir: Path) -> Models | None:
    """The process for models that run here, where several workers share them."""
    longest = max(each.max_body for each in config.listeners)
    models = Models(config.pools, config.classes, state_dir=state_dir, max_body=longest)
    return models if workers_of(config) > 1 and models.needed else None


def _keys(state_dir: Path) -> tuple[Keys, bool]:
    """The gateway's keys, and whether the next run will have them, too."""
    try:
        return Keys.load(state_dir), True
    except OSError:
        return Keys.fresh(), False


def _ports(config: Config) -> list[int]:
    return [each.port for listener in config.listeners for each in listener.bind] + [config.admin.bind.port]
