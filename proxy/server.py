# SPDX-License-Identifier: Apache-2.0
"""The gateway put together: config in, doors open; and its life: start, serve, reload, drain, close."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from backends.build import build
from backends.ledger.segment import Ledger
from proxy.certificate import development_certificate
from proxy.config.loading import Config
from proxy.config.settings import Bind, ListenerSettings, TlsFiles
from proxy.keys import Keys
from proxy.listeners.alarms import Alarms
from proxy.listeners.bound import Place
from proxy.listeners.door import Door, DoorPlan, alpn_of
from proxy.listeners.marks import Marks
from proxy.listeners.tcp import tls_context
from proxy.lookout import Lookout
from proxy.quic.configuration import server_configuration
from proxy.quic.connection_ids import ConnectionIds
from proxy.reload import Merged
from proxy.telemetry import logs
from proxy.telemetry.admin import AdminServer
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from proxy.walk.pipeline import VERSION, Pipeline
from proxy.walk.pool_walk import pool_walks
from qos.settings import class_table

__all__ = ["Gateway", "Part", "settle"]

RETIRE_S = 600.0
"""Longest time for streams and uploads to end in a process that another one has replaced."""
_MOVED = ((2.0, frozenset({"stream", "datagram"})), (30.0, frozenset({"stream", "datagram", "h3", "h1"})))
"""From when after that on which transports' requests are refused, on a connection that was never quiet. Those of
inferlane/1 have no other word for it; clients of HTTP/3 have heard GOAWAY."""
_LINGER_S = 1.0
"""For what the kernel had queued."""
_COLLECTED = (20_000, 20, 20)
"""A walk leaves nothing in a cycle (6,400 of them with the collector off left no garbage), so collecting rarely costs
no memory; with Python's own 700 it runs again and again over all that is in flight."""
DRAIN_S = 30.0
"""Longest wait of a shutdown for requests in flight."""
_POLL_S, _RETIRE_POLL_S = 0.02, 0.1
_log = structlog.get_logger("inferlane.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a gateway that is one of several processes gets from who started them all, instead of making its own."""

    sockets: Mapping[str, Sequence[Place]]
    """By listener, one for each of its addresses."""
    keys: Keys
    ids: ConnectionIds
    """Which connections are known by their ids to be its own."""
    siblings: frozenset[int] = frozenset()
    """Places of the others."""
    ledger: Ledger | None = None
    """Where all of them count; none for a single one."""
    models: Mapping[tuple[str, int], Path] = field(default_factory=dict)
    """Unix sockets of endpoints that another process runs, by pool and number."""
    standby: bool = False
    """Whether others accept TCP connections until `Gateway.accept`."""
    name: str = ""
    """Said in its log lines, where there are several."""


class Gateway:
    """One process's gateway. `start` binds everything or nothing; `close` undoes it in reverse.

    part: of a gateway of several processes; then it has no admin address of its own.
    """

    def __init__(self, config: Config, *, state_dir: Path, part: Part | None = None) -> None:
        clock = time.monotonic  # uvloop's loop.time() has a resolution of 1 ms
        self._config = config
        self._state_dir = state_dir
        self._clock = clock
        self._part = part
        self._keys = Keys.fresh() if part is None else part.keys
        classes = class_table(config.classes)
        self._routes = build(config.pools, {} if part is None else part.models)
        self._metrics = Metrics(version=VERSION)
        self._ledger = None if part is None else part.ledger
        self._walks = pool_walks(config.pools, self._routes, classes, clock=clock, ledger=self._ledger)
        for each in self._walks.values():
            self._metrics.watch_gate(each, classes)
        self.marks = Marks(classes, _ceilings(config), clock=clock)
        self.telemetry = Telemetry(self._metrics, clock=clock)
        self.pipeline = Pipeline(config.policy(), self._routes, self._walks, self.telemetry, clock=clock)
        self.doors: list[Door] = []
        self._alarms: Alarms | None = None
        self._lookout = Lookout(config, self._routes, self._walks, clock=clock, control=part is None)
        self._lookout.tell(self._metrics)
        self.endpoints = self._lookout.endpoints
        self._admin = None if part is not None else self._admin_server(config.admin.bind)

    def __repr__(self) -> str:
        return f"<Gateway {self.doors!r} {self.pipeline!r}>"

    @property
    def config(self) -> Config:
        """What it runs with: as started, with what was reloaded since."""
        return self._config

    @property
    def metrics(self) -> Metrics:
        """What /metrics shows."""
        return self._metrics

    @property
    def admin(self) -> tuple[str, int]:
        """Where /metrics, /healthz, /readyz and /v1/... answer."""
        assert self._admin is not None, "a part of a gateway has none"
        return self._admin.bound

    async def start(self) -> None:
        """Certificates, then models, then sockets: no door opens before what is behind it is ready.

        Raises OSError, TlsError or BackendError with one line for people; nothing is left behind.
        """
        self._alarms = Alarms(self._clock)
        try:
            if self._admin is not None:
                await self._admin.start()
            plans = [self._plan(each) for each in self._config.listeners]
            for pool in self._routes.pools:
                await pool.start()
            await self._lookout.start()
            for plan in plans:
                door = Door(plan, self.pipeline, marks=self.marks, alarms=self._alarms, clock=self._clock)
                if self._part is None:
                    door.start()
                else:
                    door.start(self._part.sockets[plan.name], accepting=not self._part.standby)
                self.doors.append(door)
                if self._part is not None:
                    door.use_siblings(self._part.siblings)
                self._metrics.watch_door(door.name, door)
                if door.http1 is not None:
                    self._metrics.watch_tcp_door(door.name, door.http1)
        except BaseException:
            await self.close()
            raise

    def announce(self) -> None:
        """Say in the log where it listens: from here on it is meant to be found."""
        for door in self.doors:
            _log.info("listening", listener=door.name, addresses=[f"{host}:{port}" for host, port in door.bound])
        _log.info("admin_listening", address="{}:{}".format(*self.admin))

    def use(self, merged: Merged) -> None:
        """Change over to another config, between one packet and the next."""
        config, classes = merged.config, merged.policy.classes
        # Nothing below waits or fails, so nobody sees the one without the other.
        self.pipeline.policy = merged.policy
        self.marks.replace(classes, _ceilings(config))
        for walk in self._walks.values():
            walk.gate.use_classes(classes)
        self._metrics.use_classes(classes)
        if "log" in merged.changed:
            name = "" if self._part is None else self._part.name
            logs.configure(config.log.format, config.log.level, worker=name)
            self.telemetry.use_log_level()
        self._config = config

    def use_siblings(self, places: frozenset[int]) -> None:
        """Other processes have come or gone."""
        for door in self.doors:
            door.use_siblings(places)

    def accept(self) -> None:
        """It stood by, and now it is its turn."""
        for door in self.doors:
            door.accept()

    async def retire(self, *, longest_s: float = RETIRE_S) -> None:
        """Others serve what is new from now on: until everybody has left, nobody's request having failed."""
        began = self._clock()
        for door in self.doors:
            door.retire()
        while (waited := self._clock() - began) < longest_s:
            for since, transports in _MOVED:
                if waited >= since:
                    self.pipeline.moved = transports
            if waited >= _LINGER_S and all(door.deserted for door in self.doors):
                return
            await asyncio.sleep(_RETIRE_POLL_S)

    async def drain(self, *, longest_s: float = DRAIN_S) -> int:
        """GOAWAY, refuse what is new, finish what is in flight; give up after `longest_s`. How many are unfinished."""
        self.pipeline.draining = True
        for door in self.doors:
            door.drain()
        until = self._clock() + longest_s
        # Polled: idleness is the sum over every connection of every door, acknowledgements included.
        while not all(door.idle for door in self.doors) and self._clock() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        return self.pipeline.in_flight

    async def close(self) -> None:
        """Let go of everything, in the reverse order of `start`."""
        for door in reversed(self.doors):
            door.close()
            await door.wait_closed()
        self.doors.clear()
        await self._lookout.close()
        for pool in reversed(self._routes.pools):
            await pool.close()
        if self._admin is not None:
            await self._admin.close()
        if self._alarms is not None:
            self._alarms.close()
        if self._ledger is not None:
            self._ledger.close()

    async def not_ready(self) -> list[str]:
        """What keeps it from serving now; nothing: it is ready."""
        waiting = [f"pool {pool.name}" for pool in self._routes.pools if not pool.ready]
        return ["draining", *waiting] if self.pipeline.draining else waiting

    def _admin_server(self, bind: Bind) -> AdminServer:
        documents = {"/v1/pools": self.endpoints.pools, "/v1/diagnose": self.telemetry.diagnose}
        return AdminServer(bind.host, bind.port, self._metrics.answer, self.not_ready, documents)

    def _plan(self, listener: ListenerSettings) -> DoorPlan:
        quic = http1 = None
        if listener.tls is not None:
            if isinstance(listener.tls, TlsFiles):
                certificate, key = listener.tls.cert, listener.tls.key
            else:
                certificate, key = development_certificate(self._state_dir)
            alpn = alpn_of(listener.accept)
            checked = server_configuration(certificate, key, alpn)  # without QUIC too: it says what is wrong with them
            quic = checked if alpn else None
            http1 = tls_context(certificate, key) if "h1" in listener.accept else None
        return DoorPlan(
            name=listener.name,
            addresses=[(each.host, each.port) for each in listener.bind],
            accept=listener.accept,
            tls=quic,
            http1_tls=http1,
            max_body=listener.max_body,
            cookie_secret=self._keys.cookie,
            ids=None if self._part is None else self._part.ids,
            keys=self._keys,
            slowest_bps=min((each.egress for each in self._config.interfaces), default=None),
        )


def _ceilings(config: Config) -> dict[str, str | None]:
    return {each.name: each.max_class for each in config.listeners}


def settle() -> None:
    """What was made up to now stays: keep the garbage collector from looking through it again and again.

    A full collection of the 84,000 objects of an idle gateway takes 70 ms of CPU, in which every client waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTED)
