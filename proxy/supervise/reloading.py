# SPDX-License-Identifier: Apache-2.0
"""SIGHUP with workers: the supervisor reads and checks the file once, and all of them change over, or none does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from proxy.config.loading import Config, ConfigError, load_text, read_text
from proxy.reload import Merged, merge, refused, taken_up
from proxy.supervise.start import ConfigText
from proxy.supervise.worker_process import WorkerProcess
from proxy.telemetry import logs

__all__ = ["RunningConfig"]

PREPARE_S = 60.0
"""A long file takes seconds to parse, and all workers parse it at once."""
_log = structlog.get_logger("inferlane.supervisor")


class RunningConfig:
    """What the gateway runs with: the config, and the text from which every worker makes the same one."""

    def __init__(self, config: Config, text: ConfigText, workers: Callable[[], list[WorkerProcess]]) -> None:
        self.config = config
        self.text = text
        self._workers = workers

    def __repr__(self) -> str:
        return f"<RunningConfig {self.text.path}>"

    async def reload(self) -> Merged | None:
        """Read the file and change over. None: something is wrong, it is in the log, and all stays as it was."""
        path = Path(self.text.path)
        try:
            text, merged = await asyncio.to_thread(self._read)
            await self._prepare(text)
        except (ConfigError, ValueError) as error:
            refused(path, error)
            return None
        # From here on nothing waits: a worker that starts is told the new config, and every other one has prepared.
        ceilings = {each.name: each.max_class for each in merged.config.listeners}
        self.text = msgspec.structs.replace(self.text, reloaded=text, ceilings=ceilings)
        self.config = merged.config
        for worker in self._workers():
            worker.tell("use")
        if "log" in merged.changed:
            logs.configure(merged.config.log.format, merged.config.log.level)
        taken_up(path, merged)
        return merged

    def _read(self) -> tuple[str, Merged]:
        text = read_text(self.text.path)
        read, _ = load_text(text, self.text.path)
        return text, merge(self.config, read, helped=self.text.helped)

    async def _prepare(self, text: str) -> None:
        """Until everybody has; those that start meanwhile, too. Raises ValueError: one cannot."""
        prepared: set[WorkerProcess] = set()
        while missing := [each for each in self._workers() if each not in prepared]:
            await asyncio.gather(*(_prepared(each, text) for each in missing))
            prepared.update(missing)


async def _prepared(worker: WorkerProcess, text: str) -> None:
    try:
        await worker.ask("reload", text, timeout_s=PREPARE_S)
    except OSError as error:
        if not worker.lost:  # else: who comes after it is told the config that holds then
            raise ValueError(f"{worker.name}: {error}") from None
