# SPDX-License-Identifier: Apache-2.0
"""An upgrade: what is on disk now is started beside what runs, and takes over once all of it is ready.

Whatever goes wrong before that ends what was started and changes nothing: nobody was sent to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from backends.errors import BackendError
from proxy.config.loading import Config, ConfigError, load_text, read_text
from proxy.config.settings import ListenerSettings
from proxy.endpoints import NotDone
from proxy.supervise.edition import Edition
from proxy.supervise.fleet import BANKS, Fleet
from proxy.supervise.rows import Rows
from proxy.supervise.start import ConfigText
from proxy.supervise.worker_process import WorkerFailedError
from proxy.telemetry import logs

__all__ = ["START_S", "Look", "UpgradeError", "UpgradeState", "Upgrading", "moved_addresses"]

START_S = 900.0
"""For all workers to be ready: models may take minutes to load."""
_log = structlog.get_logger("inferlane.upgrade")


class UpgradeError(Exception):
    """It cannot take over: one line for people."""


class UpgradeState(msgspec.Struct, frozen=True, kw_only=True):
    """How the last one went."""

    state: Literal["none", "starting", "done", "failed"] = "none"
    number: int = 0
    """How many were asked for."""
    detail: str = ""


Look = Callable[[int], Awaitable[Rows | None]]
"""Asks the program on disk whether it can go on with what runs here: rows of a ledger that it has arranged for so many
workers, where it does that otherwise. Raises UpgradeError: it cannot."""


class Upgrading:
    """One after another. count_of: how many workers a config asks for; taken_over: told which config runs now."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        count_of: Callable[[Config], int],
        look: Look,
        taken_over: Callable[[Config], None],
    ) -> None:
        self.state = UpgradeState()
        self.alone = asyncio.Lock()
        """Held by whoever changes what runs: an upgrade, or a reload."""
        self._fleet = fleet
        self._count_of = count_of
        self._look = look
        self._taken_over = taken_over
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Upgrading {self.state.number}: {self.state.state}>"

    def begin(self) -> UpgradeState:
        """Start one. Raises NotDone: not now."""
        if self._task is not None and not self._task.done():
            raise NotDone(409, "an upgrade is going on; wait for its end")
        leaving = self._fleet.leaving
        if leaving is not None:
            workers = ", ".join(f"{each.name} (pid {each.pid})" for each in leaving.generation.workers)
            detail = f"generation {leaving.generation.number} of the last upgrade still finishes its requests"
            raise NotDone(409, f"{detail}; wait for {workers}, or end it with SIGTERM")
        self.state = UpgradeState(state="starting", number=self.state.number + 1)
        self._task = asyncio.create_task(self._run())
        return self.state

    async def cancel(self) -> None:
        """The whole gateway ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        number = self.state.number
        try:
            async with self.alone:
                detail = await self._upgrade()
            self.state = UpgradeState(state="done", number=number, detail=detail)
        except (UpgradeError, ConfigError, BackendError, WorkerFailedError, OSError) as error:
            self._failed(number, _line(error))
        except Exception as error:
            self._failed(number, f"a fault in the gateway: {error!r}; its log has more")
            raise

    def _failed(self, number: int, detail: str) -> None:
        self.state = UpgradeState(state="failed", number=number, detail=detail)
        _log.error("upgrade_failed", detail=f"{detail}; what ran before goes on")

    async def _upgrade(self) -> str:
        running = self._fleet.current.running
        text, config = await asyncio.to_thread(_read, Path(running.text.path))
        if moved := moved_addresses(running.config.listeners, config.listeners):
            raise UpgradeError(f"listeners cannot change their addresses in an upgrade: {'; '.join(moved)}")
        count = self._count_of(config)
        _log.info("upgrade_begins", workers=count)
        arranged = await self._look(count)
        started = ConfigText(path=running.text.path, started=text, helped=running.text.helped)
        edition = self._fleet.edition(config, started, count, rows=self._rows(count, arranged))
        await self._fleet.bring_up(edition, within_s=START_S)
        before = self._fleet.current.generation.number
        in_flight = await self._fleet.take_over(edition)
        self._changed_over(edition, before, in_flight)
        return f"generation {edition.generation.number} serves, with {count} workers"

    def _changed_over(self, edition: Edition, before: int, in_flight: int) -> None:
        config = edition.running.config
        logs.configure(config.log.format, config.log.level)
        _log.info(
            "upgraded",
            generation=edition.generation.number,
            workers=len(edition.places),
            leaving=before,
            in_flight=in_flight,
        )
        self._taken_over(config)

    def _rows(self, count: int, arranged: Rows | None) -> Rows | None:
        """Of the ledger that is there, so that slots hold for both editions together, or of one of its own."""
        current = self._fleet.current.rows
        if count == 1:
            rows = None
        elif arranged is not None:
            rows = arranged
        else:
            shared = None if current is None else current.beside(count)
            if shared is not None:
                return shared
            rows = Rows.create(count, banks=BANKS)
        if rows is not None or current is not None:
            _log.warning(
                "ledger_not_shared", detail="until the old generation has ended, slots are exact within each alone"
            )
        return rows


def moved_addresses(old: tuple[ListenerSettings, ...], new: tuple[ListenerSettings, ...]) -> list[str]:
    """What the sockets that are bound cannot do for another config's listeners. Pure."""
    before, after = {each.name: each for each in old}, {each.name: each for each in new}
    wrong = [f"{name} is new" for name in after if name not in before]
    wrong += [f"{name} is gone" for name in before if name not in after]
    for name, listener in after.items():
        known = before.get(name)
        if known is not None and listener.bind != known.bind:
            was, will = (", ".join(map(str, each.bind)) for each in (known, listener))
            wrong.append(f"{name} was at {was} and would be at {will}")
        elif known is not None and _kinds(listener) != _kinds(known):
            wrong.append(f"{name} would need {' and '.join(_kinds(listener))}, and has {' and '.join(_kinds(known))}")
    return wrong


def _kinds(listener: ListenerSettings) -> list[str]:
    return ["UDP"] * bool(listener.accept - {"h1"}) + ["TCP"] * ("h1" in listener.accept)


def _read(path: Path) -> tuple[str, Config]:
    text = read_text(path)
    config, _ = load_text(text, path)
    return text, config


def _line(error: Exception) -> str:
    """The first that is wrong; `inferlane check` tells all."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} (and {len(lines) - 1} more; `inferlane check` tells all)"
