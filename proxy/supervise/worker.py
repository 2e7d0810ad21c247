# SPDX-License-Identifier: Apache-2.0
"""One worker: a whole gateway on sockets that its supervisor has bound. `python -P -m proxy.supervise.worker --fd N`.

It is told by its channel what to be, and ends when it is told to, when it gets SIGTERM, or when nobody is there any
more to tell it anything; each time it finishes what it has. All other signals are for the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from backends.errors import BackendError
from backends.ledger.segment import Ledger
from proxy.certificate import CertificateError
from proxy.config.loading import ConfigError, load_text
from proxy.keys import Keys
from proxy.listeners.bound import Place
from proxy.quic.configuration import TlsError
from proxy.quic.connection_ids import ConnectionIds
from proxy.reload import Merged, merge
from proxy.server import Gateway, Part, settle
from proxy.supervise.channel import Channel
from proxy.supervise.child import run_child
from proxy.supervise.documents import worker_answers
from proxy.supervise.start import Start, config_of
from proxy.telemetry import logs

__all__ = ["Worker", "main"]

_DRAINED_EXIT, _FAILED_EXIT = 0, 1


class Worker:
    """Its life. Whoever starts it sends `start`, hears `ready` or `failed`, and may ask from then on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._begin: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._made: asyncio.Future[Gateway] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._retiring = asyncio.Event()
        self._ready = self._accepting = False
        self._start: Start | None = None
        self._prepared: Merged | None = None
        channel.told |= {"start": self._started, "use": self._use, "siblings": self._siblings, "accept": self._accept}
        channel.handlers |= {"reload": self._reload, "drain": self._drain, "retire": self._retire}

    def __repr__(self) -> str:
        return f"<Worker {self._start and self._start.place} {self._channel!r}>"

    async def run(self) -> int:
        """Until the end; the process's exit code."""
        orphaned = asyncio.create_task(self._leave_when_alone())
        try:
            self._start = await self._begin
            gateway = await self._open(self._start)
        except (BackendError, CertificateError, ConfigError, TlsError, OSError) as error:
            self._channel.tell("failed", _line(error))
            await self._channel.close()
            return _FAILED_EXIT
        finally:
            orphaned.cancel()
        alone = asyncio.create_task(self._channel.wait_closed())
        alone.add_done_callback(lambda _: self._stop.set())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        settle()
        self._ready = True
        if self._accepting:
            gateway.accept()
        self._channel.tell("ready")
        await self._serve(gateway)
        self._channel.tell("drained", await gateway.drain())
        await gateway.close()
        await self._channel.close()
        await alone
        return _DRAINED_EXIT

    async def _serve(self, gateway: Gateway) -> None:
        """Until it shall end, or others have its place and everybody has left."""
        stopped = asyncio.create_task(self._stop.wait())
        retired = asyncio.create_task(self._retired(gateway))
        await asyncio.wait((stopped, retired), return_when=asyncio.FIRST_COMPLETED)
        for each in (stopped, retired):
            each.cancel()
        await asyncio.gather(stopped, retired, return_exceptions=True)

    async def _retired(self, gateway: Gateway) -> None:
        await self._retiring.wait()
        await gateway.retire()

    async def _open(self, start: Start) -> Gateway:
        config = config_of(start.config)
        logs.configure(config.log.format, config.log.level, worker=start.name)
        gateway = Gateway(config, state_dir=Path(start.state_dir), part=_part(start))
        self._channel.handlers |= worker_answers(gateway)
        self._made.set_result(gateway)
        await gateway.start()
        return gateway

    async def _leave_when_alone(self) -> None:
        """While models load, nothing is in flight, and the threads that load them cannot be interrupted."""
        await self._channel.wait_closed()
        os._exit(_FAILED_EXIT)

    def _started(self, document: Any) -> None:
        if not self._begin.done():
            self._begin.set_result(msgspec.convert(document, Start))

    async def _drain(self, _: object) -> int:
        self._stop.set()
        if not self._made.done():
            return 0
        pipeline = self._made.result().pipeline
        pipeline.draining = True  # before the answer: whoever has it may count on that
        return pipeline.in_flight

    async def _retire(self, _: object) -> int:
        self._retiring.set()
        return self._made.result().pipeline.in_flight if self._made.done() else 0

    def _accept(self, _: object) -> None:
        self._accepting = True
        if self._ready:
            self._made.result().accept()

    async def _reload(self, text: str) -> None:
        """Prepare another config, until `use`. Raises ConfigError or ValueError: not with what runs here."""
        assert self._start is not None
        gateway = await asyncio.shield(self._made)
        path, helped = self._start.config.path, self._start.config.helped
        self._prepared = await asyncio.to_thread(lambda: merge(gateway.config, load_text(text, path)[0], helped=helped))

    def _use(self, _: object) -> None:
        if self._prepared is not None:
            self._made.result().use(self._prepared)
            self._prepared = None

    def _siblings(self, places: Any) -> None:
        if self._made.done():
            self._made.result().use_siblings(frozenset(places))


def _part(start: Start) -> Part:
    keys = Keys.from_bytes(start.keys)
    given = start.ledger
    return Part(
        sockets={
            listener: [Place(_socket(udp), _socket(tcp)) for udp, tcp in addresses]
            for listener, addresses in start.sockets.items()
        },
        keys=keys,
        ids=ConnectionIds(place=start.place, generation=start.generation, key=keys.steering),
        siblings=frozenset(start.siblings),
        ledger=None if given is None else Ledger.attach(given.fd, row=given.row, event_fds=given.event_fds),
        models={(pool, number): Path(path) for pool, number, path in start.models},
        name=start.name,
        standby=start.standby,
    )


def _socket(fd: int | None) -> socket.socket | None:
    if fd is None:
        return None
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def _line(error: Exception) -> str:
    """As the command says it (proxy/commands/terminal.py)."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def main() -> int:
    """The process."""
    return run_child(__doc__, Worker)


if __name__ == "__main__":
    sys.exit(main())
