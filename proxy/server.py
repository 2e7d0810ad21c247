# SPDX-License-Identifier: Apache-2.0
"""The gateway put together: config in, doors open; and its life: start, serve, reload, drain, close."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import time
from pathlib import Path

import structlog

from backends.build import build
from proxy import keeper, privileges
from proxy.certificate import development_certificate
from proxy.config.loading import Config
from proxy.config.settings import ListenerSettings, TlsFiles
from proxy.engine.configuration import server_configuration
from proxy.listeners.alarms import Alarms
from proxy.listeners.door import Door, DoorPlan, alpn_of
from proxy.listeners.marks import Marks
from proxy.listeners.tcp import more_descriptors, tls_context
from proxy.lookout import Lookout
from proxy.reload import Merged, reload
from proxy.telemetry import logs
from proxy.telemetry.admin import AdminServer
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from proxy.walk.pipeline import VERSION, Pipeline
from proxy.walk.pool_walk import pool_walks
from qos.settings import class_table

__all__ = ["Gateway", "run", "settle"]

DRAIN_S = 30.0
"""Longest wait of a shutdown for requests in flight."""
_POLL_S = 0.02
_log = structlog.get_logger("inferlane.server")


class Gateway:
    """One process's gateway. `start` binds everything or nothing; `close` undoes it in reverse."""

    def __init__(self, config: Config, *, state_dir: Path) -> None:
        clock = time.monotonic  # uvloop's loop.time() has a resolution of 1 ms
        self._config = config
        self._state_dir = state_dir
        self._clock = clock
        classes = class_table(config.classes)
        self._routes = build(config.pools)
        self._metrics = Metrics(version=VERSION)
        self._walks = pool_walks(config.pools, self._routes, classes, clock=clock)
        for each in self._walks.values():
            self._metrics.watch_gate(each, classes)
        self.marks = Marks(classes, _ceilings(config), clock=clock)
        self._telemetry = Telemetry(self._metrics, clock=clock)
        self.pipeline = Pipeline(config.policy(), self._routes, self._walks, self._telemetry, clock=clock)
        self.doors: list[Door] = []
        self._alarms: Alarms | None = None
        self._lookout = Lookout(config, self._routes, self._walks, clock=clock)
        self._lookout.tell(self._metrics)
        bind, documents = (
            config.admin.bind,
            {"/v1/pools": self._lookout.pools, "/v1/diagnose": self._telemetry.diagnose},
        )
        self._admin = AdminServer(bind.host, bind.port, self._metrics, self._not_ready, documents)

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
        return self._admin.bound

    async def start(self) -> None:
        """Certificates, then models, then sockets: no door opens before what is behind it is ready.

        Raises OSError, TlsError or BackendError with one line for people; nothing is left behind.
        """
        self._alarms = Alarms(self._clock)
        try:
            await self._admin.start()
            plans = [self._plan(each) for each in self._config.listeners]
            for pool in self._routes.pools:
                await pool.start()
            await self._lookout.start()
            for plan in plans:
                door = Door(plan, self.pipeline, marks=self.marks, alarms=self._alarms, clock=self._clock)
                door.start()
                self.doors.append(door)
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
            logs.configure(config.log.format, config.log.level)
            self._telemetry.use_log_level()
        self._config = config

    async def drain(self, *, longest_s: float = DRAIN_S) -> None:
        """GOAWAY, refuse what is new, finish what is in flight; give up after `longest_s`."""
        self.pipeline.draining = True
        _log.info("draining", in_flight=self.pipeline.in_flight)
        for door in self.doors:
            door.drain()
        until = self._clock() + longest_s
        # Polled: idleness is the sum over every connection of every door, acknowledgements included.
        while not all(door.idle for door in self.doors) and self._clock() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        _log.info("drained", unfinished=self.pipeline.in_flight)

    async def close(self) -> None:
        """Let go of everything, in the reverse order of `start`."""
        for door in reversed(self.doors):
            door.close()
            await door.wait_closed()
        self.doors.clear()
        await self._lookout.close()
        for pool in reversed(self._routes.pools):
            await pool.close()
        await self._admin.close()
        if self._alarms is not None:
            self._alarms.close()

    def _not_ready(self) -> list[str]:
        waiting = [f"pool {pool.name}" for pool in self._routes.pools if not pool.ready]
        return ["draining", *waiting] if self.pipeline.draining else waiting

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
            cookie_secret=secrets.token_bytes(32),
        )


def _ceilings(config: Config) -> dict[str, str | None]:
    return {each.name: each.max_class for each in config.listeners}


async def run(config: Config, *, state_dir: Path, conf: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, drain, return. conf: what SIGHUP reads again."""
    logs.configure(config.log.format, config.log.level)
    more_descriptors()
    # The order is the point: the helper starts with all rights, and before a door opens nobody else has them.
    keeping = keeper.spawn(config.link_policy(), state_dir)
    privileges.drop(privileges.kept(_ports(config), root=os.geteuid() == 0))
    stop, hangup = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)  # while models load, it can wait
    try:
        gateway = Gateway(config, state_dir=state_dir)
        if keeping is not None:
            await keeping.start(gateway.metrics.show_links)
        await gateway.start()
        # Only now: a signal while models load has nothing to finish, and may end the process as it always does.
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        settle()
        gateway.announce()
        reloading = asyncio.create_task(_reloads(gateway, keeping, conf, hangup))
        try:
            await stop.wait()
            await gateway.drain()
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
            await gateway.close()
    finally:
        if keeping is not None:
            await keeping.close()


def settle() -> None:
    """What was made up to now stays: keep the garbage collector from looking through it again and again.

    A full collection of the 84,000 objects of an idle gateway takes 70 ms of CPU, in which every client waits.
    """
    gc.collect()
    gc.freeze()


async def _reloads(gateway: Gateway, keeping: keeper.Keeper | None, conf: Path | None, hangup: asyncio.Event) -> None:
    """One after another; signals that come meanwhile are one."""
    while True:
        await hangup.wait()
        hangup.clear()
        if conf is None:
            _log.warning("reload_failed", problems=[], detail="this gateway was not started from a file")
            continue
        if await reload(conf, gateway, helped=keeping is not None) and keeping is not None:
            keeping.use_policy(gateway.config.link_policy())


def _ports(config: Config) -> list[int]:
    return [each.port for listener in config.listeners for each in listener.bind] + [config.admin.bind.port]
