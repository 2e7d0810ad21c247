# SPDX-License-Identifier: Apache-2.0
"""`inferlane serve`: ONNX models of this machine behind HTTP/1.1 and inference datagrams, for a gateway in front.

It runs the gateway's own walk, with one pool a model. Whoever reaches it is believed: the class and the remaining time
of a request were decided by the gateway that sent it, so neither is judged or capped again here. Bind it to loopback,
a Unix socket or a network that only gateways are in.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_network
from pathlib import Path

import structlog
from pydantic import ValidationError

from backends.build import build
from backends.errors import BackendError
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.settings import BatchSettings, OnnxSettings
from proxy.bind import bind_tcp, bind_unix
from proxy.config.settings import Bind
from proxy.listeners.alarms import Alarms
from proxy.listeners.door import Door, DoorPlan
from proxy.listeners.http1 import Http1Door, Http1Plan
from proxy.listeners.marks import Marks
from proxy.listeners.tcp import more_descriptors
from proxy.server import DRAIN_S, settle
from proxy.telemetry import logs
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from proxy.walk.pipeline import VERSION, Pipeline
from proxy.walk.pool_walk import pool_walks
from qos.classify import Policy
from qos.settings import BUILT_IN_CLASSES, ClassSettings, GateSettings, TrustSettings, class_table, policy
from qos.traffic_class import ClassTable

__all__ = ["ModelServer", "find_models", "pools_of", "run", "trusting_policy", "uncapped"]

MAX_BODY = 64 << 20
LONGEST_S = 600.0
"""For a request that says no time; one that came through a gateway says it."""
_HTTP, _UDP = "http", "udp"
_POLL_S = 0.02
_ALONE = BatchSettings()
_log = structlog.get_logger("inferlane.serve")


def find_models(path: Path) -> dict[str, Path]:
    """The models at a path by name: NAME/model.onnx, NAME/1/model.onnx or NAME.onnx in a directory, or one file.

    Raises BackendError when there is none, or two have one name.
    """
    if not path.exists():
        raise BackendError(f"{path}: no such file or directory")
    found: dict[str, Path] = {}
    for file in _files(path):
        name = _name_of(file)
        if name in found:
            raise BackendError(f"two models have the name {name}: {found[name]} and {file}; rename one of them")
        found[name] = file
    if not found:
        raise BackendError(f"{path}: no models; expected NAME/model.onnx, NAME/1/model.onnx or NAME.onnx there")
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        if path.suffix != ".onnx":
            raise BackendError(f"{path}: not a .onnx file")
        yield path
        return
    for pattern in ("*.onnx", "*/model.onnx", "*/*/model.onnx"):
        for file in sorted(path.glob(pattern)):
            folders = file.relative_to(path).parts[:-1]
            if any(folder.startswith(".") for folder in folders):
                continue
            if len(folders) == 2 and not folders[1].isdigit():
                continue  # a directory of directories, not a model with versions
            if len(folders) == 2 and folders[1] != "1":
                raise BackendError(f"{file}: only version 1 of a model is served; give it a name of its own")
            yield file


def _name_of(file: Path) -> str:
    """model.onnx is named after its directory, or the one above where that is a version's."""
    if file.name != "model.onnx":
        return file.stem
    folder = file.absolute().parent
    return folder.parent.name if folder.name.isdigit() else folder.name


def pools_of(
    models: Mapping[str, Path], *, providers: Sequence[str] = ("cpu",), batch: BatchSettings = _ALONE
) -> list[PoolSettings]:
    """One pool a model. Raises BackendError for what the settings do not allow."""
    pools = []
    for name, file in models.items():
        try:
            onnx = OnnxSettings.model_validate({"onnx": file, "providers": tuple(providers), "batch": batch})
            pools.append(PoolSettings(name=name, model=(name,), endpoints=(onnx,)))
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            raise BackendError(f"{file}: {wrong['msg'].removeprefix('Value error, ')}") from None
    return pools


class ModelServer:
    """Models, their gates and up to three doors. `start` opens all or nothing; `close` undoes it.

    classes: names and ranks that requests bring; default: the built-in ones.
    """

    def __init__(
        self,
        pools: Sequence[PoolSettings],
        *,
        http: Bind | None = None,
        udp: Bind | None = None,
        socket: Path | None = None,
        max_body: int = MAX_BODY,
        classes: Sequence[ClassSettings] = BUILT_IN_CLASSES,
    ) -> None:
        self._clock = time.monotonic
        self._http_bind, self._udp_bind, self._socket, self._max_body = http, udp, socket, max_body
        self._routes = build(pools)
        self._classes = uncapped(classes)
        self._walks = pool_walks(pools, self._routes, self._classes, clock=self._clock)
        self.pipeline = Pipeline(
            trusting_policy(self._classes),
            self._routes,
            self._walks,
            Telemetry(Metrics(version=VERSION)),
            clock=self._clock,
        )
        self.http: tuple[str, int] | None = None
        """Where it listens, once it does."""
        self.udp: tuple[str, int] | None = None
        self._opened = AsyncExitStack()
        self._doors: list[Door | Http1Door] = []

    def __repr__(self) -> str:
        return f"<ModelServer {[pool.name for pool in self._routes.pools]} {self.pipeline!r}>"

    @property
    def pools(self) -> Sequence[Pool]:
        """One a model."""
        return self._routes.pools

    async def start(self) -> None:
        """Load the models, then open the doors. Raises BackendError or OSError with one line for people."""
        async with AsyncExitStack() as opening:
            # Bound before the models load, which can take minutes: a taken port is told at once.
            tcp = unix = None
            if self._http_bind is not None:
                tcp = opening.enter_context(bind_tcp(self._http_bind.host, self._http_bind.port))
            if self._socket is not None:
                unix = opening.enter_context(bind_unix(self._socket))
                opening.callback(self._socket.unlink, missing_ok=True)
            for pool in self._routes.pools:
                opening.push_async_callback(pool.close)
                await pool.start()
            datagrams = None if self._udp_bind is None else self._open_udp(self._udp_bind, opening)
            plan = Http1Plan(listener=_HTTP, transport=_HTTP, max_body=self._max_body, models=self._readiness)
            door = Http1Door(self.pipeline, plan, clock=self._clock)
            opening.push_async_callback(door.close)
            self.http = None if tcp is None else tcp.getsockname()[:2]
            for sock in filter(None, (tcp, unix)):
                door.start(sock)
            self._doors = [door] if datagrams is None else [datagrams, door]
            self._opened = opening.pop_all()

    def use_classes(self, classes: Sequence[ClassSettings]) -> None:
        """Others, between one request and the next."""
        self._classes = uncapped(classes)
        self.pipeline.policy = trusting_policy(self._classes)
        for walk in self._walks.values():
            walk.gate.use_classes(self._classes)

    async def drain(self, *, longest_s: float = DRAIN_S) -> None:
        """Take nothing new and finish what is in flight; give up after `longest_s`."""
        self.pipeline.draining = True
        for door in self._doors:
            door.drain()
        until = self._clock() + longest_s
        while not all(door.idle for door in self._doors) and self._clock() < until:  # noqa: ASYNC110  as server.py
            await asyncio.sleep(_POLL_S)
        _log.info("drained", unfinished=self.pipeline.in_flight)

    async def close(self) -> None:
        """Close the doors, then the models."""
        await self._opened.aclose()

    def _open_udp(self, bind: Bind, opening: AsyncExitStack) -> Door:
        alarms = Alarms(self._clock)
        opening.callback(alarms.close)
        marks = Marks(self._classes, {_UDP: None}, clock=self._clock)
        datagrams = Door(_udp_plan(bind), self.pipeline, marks=marks, alarms=alarms, clock=self._clock)
        datagrams.start()
        opening.callback(datagrams.close)
        self.udp = datagrams.bound[0]
        return datagrams

    def _readiness(self) -> list[tuple[str, bool]]:
        return [(pool.name, pool.ready) for pool in self._routes.pools]


def trusting_policy(classes: ClassTable | None = None) -> Policy:
    """Believes every class it knows and caps no deadline but that of a request without one."""
    everybody = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    classes = uncapped(BUILT_IN_CLASSES) if classes is None else classes
    highest = next(iter(classes)).name
    return policy(classes, (), TrustSettings(class_from=everybody), {_HTTP: highest, _UDP: highest})


def uncapped(classes: Sequence[ClassSettings]) -> ClassTable:
    """The names and ranks that a gateway's requests bring; the time they may take is the gateway's to say."""
    return class_table([each.model_copy(update=_UNCAPPED) for each in classes])


_UNCAPPED = {"deadline": LONGEST_S, "gate": GateSettings()}


def _udp_plan(bind: Bind) -> DoorPlan:
    return DoorPlan(
        name=_UDP,
        addresses=[(bind.host, bind.port)],
        accept=frozenset({"udp"}),
        tls=None,
        max_body=MAX_BODY,
        cookie_secret=secrets.token_bytes(32),
        reflects=True,
    )


async def run(
    models: Path,
    *,
    http: Bind,
    udp: Bind,
    socket: Path | None = None,
    providers: Sequence[str] = ("cpu",),
    batch: BatchSettings = _ALONE,
) -> None:
    """Serve until SIGTERM or SIGINT, finish, return. Raises BackendError or OSError with one line for people."""
    logs.configure("console" if sys.stderr.isatty() else "json")
    more_descriptors()
    pools = pools_of(find_models(models), providers=providers, batch=batch)
    server = ModelServer(pools, http=http, udp=udp, socket=socket)
    await server.start()
    # Only now: a signal while models load has nothing to finish, and may end the process as it always does.
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    settle()
    names = [pool.name for pool in pools]
    _log.info("serving", models=names, http=server.http, udp=server.udp, socket=socket and str(socket))
    try:
        await stop.wait()
        await server.drain()
    finally:
        await server.close()
