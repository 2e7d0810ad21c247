# SPDX-License-Identifier: Apache-2.0
"""The process that runs a gateway's models for all of its workers. `python -P -m proxy.supervise.models_child --fd N`.

The same walk as `inferlane serve`, on one Unix socket for each endpoint, so that a model has whatever name its clients
know it by. It finishes what it has and ends when it is told to, or when nobody is there any more who could.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from backends.errors import BackendError
from backends.pool_settings import PoolSettings
from backends.remote.served import Naming
from backends.settings import BatchSettings, OnnxSettings
from proxy.listeners.tcp import more_descriptors
from proxy.serve import ModelServer
from proxy.server import settle
from proxy.supervise.channel import Channel
from proxy.supervise.child import run_child
from proxy.supervise.models_start import Class, Model, ModelsStart
from proxy.telemetry import logs
from proxy.telemetry.exposition import process
from proxy.telemetry.families import Exported
from qos.settings import ClassSettings

__all__ = ["Child", "main"]

_ENDED, _FAILED = 0, 1


class Child:
    """Its life. Whoever starts it sends `start` and hears `ready` or `failed`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._begin: asyncio.Future[ModelsStart] = asyncio.get_running_loop().create_future()
        self._servers: list[ModelServer] = []
        self._classes: list[Class] = []
        """As they were told last, which may be before there is a server."""
        self._log_format: Literal["json", "console"] | None = None
        channel.told |= {"start": self._started, "classes": self._use_classes, "log_format": self._use_log_format}
        channel.handlers |= {"metrics": _metrics}

    def __repr__(self) -> str:
        return f"<Child {self._servers!r}>"

    async def run(self) -> int:
        """Until the end; the process's exit code."""
        alone = asyncio.create_task(self._channel.wait_closed())
        loading = asyncio.create_task(self._load())
        await asyncio.wait([alone, loading], return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            self._clear()
            os._exit(_FAILED)  # nobody waits for the models, and the threads that load them cannot be interrupted
        stop = asyncio.Event()
        alone.add_done_callback(lambda _: stop.set())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        failed = loading.result()
        if failed is not None:
            self._channel.tell("failed", failed)
        else:
            settle()
            self._channel.tell("ready")
            await stop.wait()
            await asyncio.gather(*(each.drain() for each in self._servers))
        await asyncio.gather(*(each.close() for each in self._servers))
        if alone.done():
            self._clear()
        await self._channel.close()
        await alone
        return _ENDED if failed is None else _FAILED

    async def _load(self) -> str | None:
        """Why it cannot be; None: all models answer."""
        start = await self._begin
        self._log(start)
        more_descriptors()
        classes = _classes(self._classes or start.classes)
        self._servers = [_server(each, start.max_body, classes) for each in start.models]
        ends = await asyncio.gather(*(each.start() for each in self._servers), return_exceptions=True)
        for each in ends:
            if isinstance(each, (BackendError, OSError)):
                return str(each) if not isinstance(each, OSError) else each.strerror or str(each)
            if isinstance(each, BaseException):
                raise each
        return None

    def _use_log_format(self, log_format: Any) -> None:
        self._log_format = msgspec.convert(log_format, Literal["json", "console"])
        if self._begin.done():
            self._log(self._begin.result())

    def _log(self, start: ModelsStart) -> None:
        # Of each request the worker writes a line.
        logs.configure(self._log_format or start.log_format, "warning", worker=start.name)

    def _clear(self) -> None:
        """Whoever made the directory of the sockets is not there any more to remove it."""
        if self._begin.done():
            for path in [Path(each.path) for each in self._begin.result().models]:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    path.parent.rmdir()

    def _started(self, document: Any) -> None:
        if not self._begin.done():
            self._begin.set_result(msgspec.convert(document, ModelsStart))

    def _use_classes(self, document: Any) -> None:
        self._classes = msgspec.convert(document, list[Class])
        for each in self._servers:
            each.use_classes(_classes(self._classes))


async def _metrics(_: object) -> list[Exported]:
    return list(process())


def _server(model: Model, max_body: int, classes: Sequence[ClassSettings]) -> ModelServer:
    # The parent's config was verified; files may have gone since, which is told as they are read.
    settings = OnnxSettings.model_construct(
        onnx=Path(model.onnx),
        providers=tuple(model.providers),
        batch=BatchSettings.model_construct(max_size=model.max_size, max_wait=model.max_wait_s),
        slots=model.slots,
        zone=None,
    )
    pool = PoolSettings.model_construct(name=model.pool, model=("*",), endpoints=(settings,))
    server = ModelServer([pool], socket=Path(model.path), max_body=max_body, classes=classes)
    for each in server.pools:
        for endpoint in each.endpoints:
            endpoint.backend = Naming(endpoint.backend)
    return server


def _classes(classes: Sequence[Class]) -> list[ClassSettings]:
    return [
        ClassSettings.model_construct(name=each.name, dscp=each.dscp, deadline=each.deadline_s, default=each.default)
        for each in classes
    ]


def main() -> int:
    """The process."""
    return run_child(__doc__, Child)


if __name__ == "__main__":
    sys.exit(main())
