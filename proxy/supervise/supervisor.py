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

from proxy import keeper, privileges
from proxy.config.loading import Config
from proxy.config.settings import MOST_WORKERS, AdminSettings
from proxy.control import Control
from proxy.endpoints import NotDone
from proxy.keys import Keys
from proxy.listeners.tcp import more_descriptors
from proxy.supervise import succession
from proxy.supervise.cpus import available
from proxy.supervise.fleet import BANKS, Fleet
from proxy.supervise.rows import Rows
from proxy.supervise.sockets import Sockets
from proxy.supervise.start import ConfigText
from proxy.supervise.succession import State
from proxy.supervise.upgrading import UpgradeError, UpgradeState, Upgrading
from proxy.supervise.view import View
from proxy.telemetry import logs
from proxy.telemetry.admin import AdminServer

__all__ = ["Supervisor", "resume", "run", "workers_of"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_log = structlog.get_logger("inferlane.supervisor")


def workers_of(config: Config) -> int:
    """How many processes the config asks for."""
    if config.workers == "auto":
        return min(available(), MOST_WORKERS)
    return config.workers


class Supervisor:
    """Everything that is there once. `start` or `adopt` opens all or nothing; `close` undoes it."""

    def __init__(self, admin: AdminSettings, sockets: Sockets, keys: Keys, *, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._keys = keys
        self.view = View(
            lambda: self.fleet.processes(),
            restarts=lambda: self.fleet.restarts(),
            missing=lambda: self.fleet.missing(),
            also=lambda: self.fleet.links(),
        )
        self.fleet = Fleet(
            state_dir=state_dir, keys=keys, sockets=sockets, greet=self.view.joined, departed=self.view.departed
        )
        self.succeed = asyncio.Event()
        """Set when this process should go on with the program on disk."""
        self.upgrading = Upgrading(self.fleet, count_of=workers_of, look=self._look, taken_over=self._taken_over)
        bind = admin.bind
        self._admin = AdminServer(bind.host, bind.port, self.view.page, self.view.not_ready, self.view.documents)
        socket = admin.socket
        self._control = None if socket is None else Control(socket, self.view.commands, upgrades=self)
        self._opened = AsyncExitStack()
        self.use_policy: Callable[[Config], None] = lambda config: None
        """Told of each config that takes effect: traffic control is kept elsewhere."""

    def __repr__(self) -> str:
        return f"<Supervisor {self.fleet!r}>"

    async def start(self, config: Config, text: ConfigText) -> None:
        """Doors bound, workers ready. Raises BackendError, WorkerFailedError or OSError with one line for people."""
        count = workers_of(config)
        rows = Rows.create(count, banks=BANKS) if count > 1 else None
        first = self.fleet.edition(config, text, count, rows=rows)
        self.view.lack([f"pool {each.name}" for each in config.pools])
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self.fleet.close)
            opening.push_async_callback(self._admin.close)
            await self._admin.start()
            await self.fleet.start(first)
            await self._open_control(opening)
            self._opened = opening.pop_all()

    async def adopt(self, state: State) -> None:
        """Instead of `start`: go on with what another program in this process has handed over."""
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self.fleet.close)
            self.view.totals.adopt(state.totals)
            self.view.commands.restore(state.standing)
            await self.fleet.adopt(state.editions)
            self.upgrading.state = state.upgrade
            self.view.lack([f"pool {each.name}" for each in self.fleet.current.running.config.pools])
            opening.push_async_callback(self._admin.close)
            self._admin.adopt(state.admin)
            await self._admin.start()
            await self._open_control(opening)
            self._opened = opening.pop_all()

    def announce(self, *, keys_kept: bool) -> None:
        """Say in the log where it listens: from here on it is meant to be found."""
        if not keys_kept:
            detail = f"{self._state_dir} cannot be written; after a restart clients learn late that it was one"
            _log.warning("keys_not_kept", detail=detail)
        for listener, addresses in self.fleet.sockets.addresses.items():
            _log.info("listening", listener=listener, addresses=[f"{host}:{port}" for host, port in addresses])
        _log.info("admin_listening", address="{}:{}".format(*self._admin.bound))

    async def drain(self) -> None:
        """Have all workers finish what they have, and end."""
        self.view.draining = True
        await self.upgrading.cancel()
        self.fleet.sockets.hang_up()
        _log.info("draining", in_flight=await self.fleet.drain())
        _log.info("drained", unfinished=await self.fleet.drained())

    async def close(self) -> None:
        """End everything that is still there."""
        await self.upgrading.cancel()
        await self._opened.aclose()

    async def reload(self) -> None:
        """SIGHUP. During an upgrade it waits for its end."""
        async with self.upgrading.alone:
            config = await self.fleet.current.reload()
        if config is not None:
            self.use_policy(config)

    def begin(self) -> UpgradeState:
        """SIGUSR2, or the command. Raises NotDone: not now."""
        return self.upgrading.begin()

    def status(self) -> UpgradeState:
        """How the last upgrade went, or goes."""
        return self.upgrading.state

    def handed(self, keeping: keeper.Keeper | None) -> State | None:
        """For another program in this process. None, or ChannelError: not now."""
        editions = self.fleet.handed()
        if editions is None:
            return None
        return State(
            state_dir=str(self._state_dir),
            keys=self._keys.to_bytes(),
            editions=editions,
            sockets=self.fleet.sockets.handed(),
            admin=self._admin.handed(),
            totals=self.view.totals.handed(),
            standing=self.view.commands.replay(),
            upgrade=self.upgrading.state,
            keeper=None if keeping is None else keeping.handed(),
        )

    async def _look(self, count: int) -> Rows | None:
        state = self.handed(None)
        if state is None:
            raise OSError("models are being started again; try again later")
        return await succession.look(state, count)

    def _taken_over(self, config: Config) -> None:
        self.view.lack([f"pool {each.name}" for each in config.pools])
        self.use_policy(config)
        self.succeed.set()

    async def _open_control(self, opening: AsyncExitStack) -> None:
        if self._control is not None:
            opening.push_async_callback(self._control.close)
            await self._control.start()


async def run(config: Config, *, text: str, conf: Path, state_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT, drain, return. text: of the file `conf`, from which the config was read."""
    logs.configure(config.log.format, config.log.level)
    more_descriptors()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until there is something to upgrade; and for those who are started
    # The order is the point: the helper starts with all rights, and nobody else has them when a door is read. Doors
    # are bound before, for both editions of an upgrade: their buffers may be larger then, and their numbers low.
    keeping = keeper.spawn(config.link_policy(), state_dir)
    try:
        sockets = Sockets.bind(config.listeners, places=BANKS * workers_of(config))
        privileges.drop(privileges.kept(_ports(config), root=os.geteuid() == 0))
        hangup = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)  # while models load, it can wait
        keys, keys_kept = _keys(state_dir)
        supervisor = Supervisor(config.admin, sockets, keys, state_dir=state_dir)
        if keeping is not None:
            await keeping.start(supervisor.view.show_links)
        await supervisor.start(config, ConfigText(path=str(conf), started=text, helped=keeping is not None))
        await _serve(supervisor, keeping, hangup, lambda: supervisor.announce(keys_kept=keys_kept))
    finally:
        if keeping is not None:
            await keeping.close()


async def resume(state: State) -> None:
    """Go on with what another program in this process has handed over."""
    current = next(each for each in reversed(state.editions) if not each.generation.retiring)
    config = current.config()
    logs.configure(config.log.format, config.log.level)
    hangup = asyncio.Event()
    keeping = None if state.keeper is None else keeper.Keeper.adopt(state.keeper, config.link_policy())
    try:
        sockets = Sockets.adopt(state.sockets)
        supervisor = Supervisor(config.admin, sockets, Keys.from_bytes(state.keys), state_dir=Path(state.state_dir))
        if keeping is not None:
            await keeping.start(supervisor.view.show_links)
        await supervisor.adopt(state)
        await _serve(supervisor, keeping, hangup, lambda: _log.info("supervisor_upgraded", pid=os.getpid()))
    finally:
        if keeping is not None:
            await keeping.close()


async def _serve(
    supervisor: Supervisor, keeping: keeper.Keeper | None, hangup: asyncio.Event, announce: Callable[[], None]
) -> None:
    loop, stop, upgrade = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    if keeping is not None:
        supervisor.use_policy = lambda config: keeping.use_policy(config.link_policy())
    # Only now: a signal while models load has nothing to finish, and may end the process as it always does.
    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: hangup, signal.SIGUSR2: upgrade}
    for number, event in handlers.items():
        loop.add_signal_handler(number, event.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what came while another program gave way to this one
    announce()
    tasks = [
        asyncio.create_task(_whenever(hangup, supervisor.reload)),
        asyncio.create_task(_whenever(upgrade, lambda: _begin(supervisor))),
        asyncio.create_task(_whenever(supervisor.succeed, lambda: _succeed(supervisor, keeping, [stop, hangup]))),
    ]
    try:
        await stop.wait()
        await supervisor.drain()
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await supervisor.close()


async def _begin(supervisor: Supervisor) -> None:
    try:
        supervisor.begin()
    except NotDone as refusal:
        _log.error("upgrade_refused", detail=str(refusal.document["error"]))


async def _succeed(supervisor: Supervisor, keeping: keeper.Keeper | None, signals: list[asyncio.Event]) -> None:
    """Give way to the program on disk, in this process; where that cannot be, go on."""

    def state() -> State | None:
        return None if any(each.is_set() for each in signals) else supervisor.handed(keeping)

    try:
        await succession.succeed(state, _SIGNALS)
    except (succession.SuccessionError, UpgradeError, OSError) as error:
        detail = f"{error}; the supervisor goes on as it is, with the new workers"
        _log.error("supervisor_not_upgraded", detail=detail)


async def _whenever(happens: asyncio.Event, act: Callable[[], Awaitable[None]]) -> None:
    """One after another; signals that come meanwhile are one."""
    while True:
        await happens.wait()
        happens.clear()
        try:
            await act()
        except Exception:  # noqa: BLE001  no thread, no memory: the next signal may find some
            _log.exception("signal_failed", detail="all stays as it was")


def _keys(state_dir: Path) -> tuple[Keys, bool]:
    """The gateway's keys, and whether the next run will have them, too."""
    try:
        return Keys.load(state_dir), True
    except OSError:
        return Keys.fresh(), False


def _ports(config: Config) -> list[int]:
    return [each.port for listener in config.listeners for each in listener.bind] + [config.admin.bind.port]
