# SPDX-License-Identifier: Apache-2.0
"""The gateway put together: config in, doors open; and its life: start, serve, drain, close."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from pathlib import Path

import structlog

from backends.build import build
from proxy.certificate import development_certificate
from proxy.config.loading import Config
from proxy.config.settings import ListenerSettings, TlsFiles
from proxy.gate import Gate
from proxy.listeners.door import Door, DoorPlan, alpn_of
from proxy.listeners.quic import Alarms
from proxy.pipeline import VERSION, Pipeline
from proxy.protocols.quic import server_configuration
from proxy.telemetry import logs
from proxy.telemetry.admin import AdminServer
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from qos.settings import class_table, policy

__all__ = ["Gateway", "run"]

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
        gates = {pool.name: Gate(pool, clock=clock) for pool in self._routes.pools}
        for gate in gates.values():
            self._metrics.watch_gate(gate, classes)
        self.pipeline = Pipeline(
            policy(classes, config.rules, config.trust, {each.name: each.max_class for each in config.listeners}),
            self._routes,
            gates,
            Telemetry(self._metrics),
            clock=clock,
        )
        self.doors: list[Door] = []
        self._alarms: Alarms | None = None
        self._admin = AdminServer(config.admin.bind.host, config.admin.bind.port, self._metrics, self._not_ready)

    def __repr__(self) -> str:
        return f"<Gateway {self.doors!r} {self.pipeline!r}>"

    @property
    def admin(self) -> tuple[str, int]:
        """Where /metrics, /healthz and /readyz answer."""
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
            for plan in plans:
                door = Door(plan, self.pipeline, alarms=self._alarms, clock=self._clock)
                door.start()
                self.doors.append(door)
                self._metrics.watch_door(door.name, door)
        except BaseException:
            await self.close()
            raise
        for door in self.doors:
            _log.info("listening", listener=door.name, addresses=[f"{host}:{port}" for host, port in door.bound])
        _log.info("admin_listening", address="{}:{}".format(*self.admin))

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
        self.doors.clear()
        for pool in reversed(self._routes.pools):
            await pool.close()
        await self._admin.close()
        if self._alarms is not None:
            self._alarms.close()

    def _not_ready(self) -> list[str]:
        waiting = [f"pool {pool.name}" for pool in self._routes.pools if not pool.ready]
        return ["draining", *waiting] if self.pipeline.draining else waiting

    def _plan(self, listener: ListenerSettings) -> DoorPlan:
        tls = None
        if listener.tls is not None:
            if isinstance(listener.tls, TlsFiles):
                certificate, key = listener.tls.cert, listener.tls.key
            else:
                certificate, key = development_certificate(self._state_dir)
            tls = server_configuration(certificate, key, alpn_of(listener.accept))
        return DoorPlan(
            name=listener.name,
            addresses=[(each.host, each.port) for each in listener.bind],
            accept=listener.accept,
            tls=tls,
            max_body=listener.max_body,
            cookie_secret=secrets.token_bytes(32),
        )


async def run(config: Config, *, state_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT, drain, return."""
    logs.configure(config.log.format, config.log.level)
    gateway = Gateway(config, state_dir=state_dir)
    await gateway.start()
    # Only now: a signal while models load has nothing to finish, and may end the process as it always does.
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    try:
        await stop.wait()
        await gateway.drain()
    finally:
        await gateway.close()
