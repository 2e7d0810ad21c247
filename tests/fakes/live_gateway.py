# SPDX-License-Identifier: Apache-2.0
"""A whole gateway from a config file, on the test's own loop or as a process: real sockets on free ports."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from proxy.config.loading import load
from proxy.server import Gateway

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 30.0
_POLL_S = 0.01

# Deadlines that a busy machine keeps: a test that wants a shorter one says so.
CLASSES = """
  - {name: realtime, dscp: EF, deadline: 60s}
  - {name: interactive, dscp: AF21, deadline: 60s, default: true}
  - {name: batch, dscp: AF11, deadline: 60s}
  - {name: background, dscp: LE, deadline: 60s}
"""


def write_config(
    folder: Path,
    pools: str,
    *,
    classes: str = CLASSES,
    listener: str = "max_class: realtime, tls: development",
    admin: str = "127.0.0.1:0",
) -> Path:
    """A config on loopback whose clients may choose their class. `pools`: a YAML flow sequence."""
    file = folder / "gateway.yaml"
    file.write_text(
        f"version: 1\nclasses:{classes}\n"
        'trust: {class_from: ["127.0.0.0/8"]}\n'
        f'listeners: [{{name: main, bind: ["127.0.0.1:0"], {listener}}}]\n'
        f'pools: {pools}\nadmin: {{bind: "{admin}"}}\n'
    )
    return file


def oip_pool(port: int, *, slots: int = 16) -> str:
    """One pool for every model, with one server on loopback."""
    return f'[{{name: far, model: "*", endpoints: [{{oip: "http://127.0.0.1:{port}", slots: {slots}}}]}}]'


async def eventually(happened: Callable[[], Awaitable[object]]) -> None:
    """Poll, with a generous bound, for what sockets will bring."""
    async with asyncio.timeout(PATIENCE_S):
        while not await happened():
            await asyncio.sleep(_POLL_S)


class Observed:
    """What a running gateway tells at its admin address."""

    def __init__(self, admin: tuple[str, int]) -> None:
        self.admin = admin

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page."""
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.admin, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    async def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        _, page = await self.get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def reaches(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has this value."""

        async def there() -> bool:
            return await self.value(name, **labels) == value

        await eventually(there)

    async def nothing_in_flight(self) -> None:
        """Wait until every place is free and nobody waits for one."""
        await self.reaches("inferlane_in_flight", 0)
        await self.reaches("inferlane_gate_waiting", 0)


class LiveGateway(Observed):
    """A gateway on this loop."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway.admin)
        self.gateway = gateway
        self.address = gateway.doors[0].bound[0]

    def url(self, scheme: str) -> str:
        return "{}://{}:{}".format(scheme, *self.address)

    async def nothing_in_flight(self) -> None:
        await super().nothing_in_flight()

        async def idle() -> bool:
            return self.gateway.pipeline.in_flight == 0

        await eventually(idle)


@asynccontextmanager
async def live_gateway(conf: Path) -> AsyncIterator[LiveGateway]:
    """Start the gateway of a config file, and close it at the end, without draining it."""
    gateway = Gateway(load(conf), state_dir=conf.parent)
    await gateway.start()
    try:
        yield LiveGateway(gateway)
    finally:
        await gateway.close()


class GatewayProcess:
    """`inferlane run` as a process, with what it says on stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.lines: list[str] = []
        self._process = process
        self._reading = asyncio.create_task(self._read())

    async def event(self, name: str) -> dict[str, Any]:
        """Wait for the first log line of an event."""
        return await self._line(event=name)

    async def request(self, request_id: str) -> dict[str, Any]:
        """Wait for the log line of a request."""
        return await self._line(event="request_finished", request_id=request_id)

    async def _line(self, **values: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        async def told() -> bool:
            ended = self._reading.done()
            found.extend(line for line in map(json.loads, self.lines) if values.items() <= line.items())
            assert found or not ended, self.lines
            return bool(found)

        await eventually(told)
        return found[0]

    async def address(self) -> tuple[str, int]:
        """Where its first listener is bound."""
        return parse_address((await self.event("listening"))["addresses"][0])

    async def observed(self) -> Observed:
        """Its admin pages."""
        return Observed(parse_address((await self.event("admin_listening"))["address"]))

    @property
    def pid(self) -> int:
        """Of the process, which it keeps when it runs another program."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it one."""
        self._process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait until it has ended."""
        async with asyncio.timeout(PATIENCE_S):
            await self._reading
            return await self._process.wait()

    async def end(self) -> None:
        """Whatever it does, end it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._reading
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.lines.append(line.decode())


def parse_address(text: str) -> tuple[str, int]:
    """host:port."""
    host, _, port = text.rpartition(":")
    return host, int(port)


@asynccontextmanager
async def gateway_process(conf: Path) -> AsyncIterator[GatewayProcess]:
    """`inferlane run CONF` until the block ends."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "run", str(conf), "--state-dir", str(conf.parent), stderr=asyncio.subprocess.PIPE
    )
    gateway = GatewayProcess(started)
    try:
        yield gateway
    finally:
        await gateway.end()
