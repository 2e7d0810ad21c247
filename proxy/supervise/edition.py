# SPDX-License-Identifier: Apache-2.0
"""One edition of the gateway: a config, and the workers, the models and the rows of the ledger that it runs with.

There is one, but during an upgrade, when the next one serves already and the one before it still finishes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proxy.config.loading import Config
from proxy.keys import Keys
from proxy.supervise.generation import Generation, HandedGeneration
from proxy.supervise.models import Handed as HandedModels
from proxy.supervise.models import Models
from proxy.supervise.reloading import RunningConfig
from proxy.supervise.rows import HandedRows, Rows
from proxy.supervise.sockets import Sockets
from proxy.supervise.start import ConfigText, Start, config_of
from proxy.supervise.worker_process import WorkerProcess

__all__ = ["Edition", "HandedEdition", "Shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all editions have in common.

    greet: what a ready worker is asked before it counts; departed: told of one that is gone; siblings: places where
    somebody serves, but this one.
    """

    state_dir: Path
    keys: Keys
    sockets: Sockets
    greet: Callable[[WorkerProcess], Awaitable[None]]
    departed: Callable[[WorkerProcess], None]
    siblings: Callable[[int], list[int]]


class HandedEdition(msgspec.Struct, frozen=True, kw_only=True):
    """What another program in this process needs to go on with one."""

    text: ConfigText
    generation: HandedGeneration
    models: HandedModels | None
    rows: HandedRows | None

    def config(self) -> Config:
        """What it runs with. Raises ConfigError: it is none to this version of the code."""
        return config_of(self.text)


class Edition:
    """From `start`, or `adopt`, to `close`."""

    def __init__(
        self, number: int, places: range, config: Config, text: ConfigText, shared: Shared, *, rows: Rows | None
    ) -> None:
        self._shared = shared
        self.rows = rows
        self.generation = Generation(number, places, self._document, greet=shared.greet, left=self._left)
        self.running = RunningConfig(config, text, lambda: self.generation.workers)
        longest = max(each.max_body for each in config.listeners)
        models = Models(
            config.pools,
            config.classes,
            state_dir=shared.state_dir,
            max_body=longest,
            log_format=config.log.format,
            generation=number,
        )
        self.models = models if len(places) > 1 and models.needed else None

    def __repr__(self) -> str:
        return f"<Edition {self.generation!r}>"

    @property
    def places(self) -> range:
        """Of its workers."""
        return self.generation.places

    async def start(self) -> None:
        """Models, then workers. Raises BackendError, WorkerFailedError or OSError; nothing is left behind."""
        try:
            if self.models is not None:
                await self.models.start()
            await self.generation.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End what is still there."""
        await self.generation.end()
        if self.models is not None:
            await self.models.close()

    async def reload(self) -> Config | None:
        """Read its file again. None: nothing has changed."""
        merged = await self.running.reload()
        if merged is None:
            return None
        if self.models is not None and "classes" in merged.changed:
            self.models.use_classes(merged.config.classes)
        if self.models is not None and "log" in merged.changed:
            self.models.use_log_format(merged.config.log.format)
        return merged.config

    def handed(self) -> HandedEdition | None:
        """For another program in this process. None: its models are being started again. Raises ChannelError: not
        now."""
        models = None if self.models is None else self.models.handed()
        if self.models is not None and models is None:
            return None
        return HandedEdition(
            text=self.running.text,
            generation=self.generation.handed(),
            models=models,
            rows=None if self.rows is None else self.rows.handed(),
        )

    @classmethod
    async def adopt(cls, handed: HandedEdition, shared: Shared, others: Sequence[Edition]) -> Edition:
        """Go on with one that another program has started. Raises ConfigError where the text is none any more."""
        given = handed.generation
        known = [each.rows for each in others if each.rows is not None]
        edition = cls(
            given.number,
            range(given.first, given.first + len(given.restarts)),
            handed.config(),
            handed.text,
            shared,
            rows=None if handed.rows is None else Rows.adopt(handed.rows, known),
        )
        if edition.models is not None and handed.models is not None:
            await edition.models.adopt(handed.models)
        await edition.generation.adopt(given)
        return edition

    def _left(self, worker: WorkerProcess) -> None:
        if self.rows is not None:
            self.rows.clear(self.places.index(worker.place))
        self._shared.departed(worker)

    def _document(self, place: int) -> Start:
        sockets = self.models.sockets if self.models is not None else {}
        return Start(
            config=self.running.text,
            state_dir=str(self._shared.state_dir),
            place=place,
            generation=self.generation.number,
            siblings=self._shared.siblings(place),
            sockets=self._shared.sockets.at(place),
            keys=self._shared.keys.to_bytes(),
            models=[(pool, number, str(path)) for (pool, number), path in sockets.items()],
            ledger=None if self.rows is None else self.rows.at(self.places.index(place)),
            standby=not self.generation.current,
        )
