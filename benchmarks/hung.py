# SPDX-License-Identifier: Apache-2.0
"""Three backends of which one stops answering in the middle: who waits, for how long, here and at Envoy?

Requests come at Poisson instants, the same for every gateway, and the two backends that go on could carry all of them.
The third is stopped by SIGSTOP: its kernel still takes connections and bytes, as that of a process that hangs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from time import monotonic
from typing import Any

from rich.table import Table

from benchmarks.open_load import Ask, Load, http3
from benchmarks.processes import ServerError, envoy_command, quantile, server
from benchmarks.report import console, write_report
from proxy.certificate import development_certificate

HERE = Path(__file__).parent
FIRST_PORT, COUNT, SLOTS, SERVICE_MS = 5060, 3, 4, 40.0
PORT, ADMIN_PORT = 5436, 9536
DEADLINE_S = 1.0
PATIENCE_S = 3.0
"""Of the client: it must be the gateway that keeps the deadline."""
RATE = 0.5 * (COUNT - 1) * SLOTS * 1e3 / SERVICE_MS
_LATE_S = 0.1
"""On top of the deadline, for the way of the answer that says so on a busy machine."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One gateway as it is set up."""

    name: str
    command: Callable[[Path], list[str]]
    ready: str


@dataclass(slots=True)
class Seen:
    """What became of the requests of one stretch."""

    good: list[float] = field(default_factory=list)
    """Seconds, of answers with 200."""
    waits: list[float] = field(default_factory=list)
    """Seconds, of all."""
    outcomes: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """The figures of a stretch."""
        good, waits = sorted(self.good), sorted(self.waits)
        return {
            "sent": len(waits),
            "in_time": sum(each <= DEADLINE_S for each in good) / len(waits),
            "p50_ms": quantile(good, 0.5) * 1e3 if good else None,
            "p99_ms": quantile(good, 0.99) * 1e3 if good else None,
            "longest_ms": waits[-1] * 1e3,
            "too_late": sum(each > DEADLINE_S + _LATE_S for each in waits),
            "outcomes": dict(self.outcomes),
        }


def _fill(name: str, scratch: Path, endpoint: str, **more: object) -> Path:
    """A template of this folder with the servers in it, in the scratch folder."""
    endpoints = "\n".join(endpoint.format(port=FIRST_PORT + index) for index in range(COUNT))
    file = scratch / name
    text = Template((HERE / name).read_text())
    file.write_text(text.substitute(endpoints=endpoints, port=PORT, admin_port=ADMIN_PORT, **more))
    return file


def _inferlane(hedge: str) -> Callable[[Path], list[str]]:
    def command(scratch: Path) -> list[str]:
        endpoint = f'      - {{{{oip: "http://127.0.0.1:{{port}}", slots: {SLOTS}}}}}'
        config = _fill("hung.yaml", scratch, endpoint, hedge=hedge)
        return [sys.executable, "-m", "proxy", "run", str(config), "--state-dir", str(scratch / "state")]

    return command


def _envoy(retry: str, retry_policy: str) -> Callable[[Path], list[str]]:
    def command(scratch: Path) -> list[str]:
        certificate, key = development_certificate(scratch)
        address = "{{address: 127.0.0.1, port_value: {port}}}"
        config = _fill(
            "hung_envoy.yaml",
            scratch,
            f"        - endpoint: {{{{address: {{{{socket_address: {address}}}}}}}}}",
            certificate=certificate,
            key=key,
            retry=retry,
            retry_policy=retry_policy,
        )
        return envoy_command(config)

    return command


_RETRY_POLICY = (
    ", retry_policy: {retry_on: '5xx,reset,connect-failure', num_retries: 1, per_try_timeout: 0.4s,"
    " retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config:"
    " {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}],"
    " host_selection_retry_max_attempts: 3}"
)
PEERS = (
    Peer("inferlane", _inferlane(""), "/readyz"),
    Peer("inferlane, hedge 5 %", _inferlane(", hedge: 5%"), "/readyz"),
    Peer("envoy, outlier detection", _envoy("", ""), "/ready"),
    Peer("envoy, and tries of 0.4 s", _envoy("A try has 0.4 s, then another server.", _RETRY_POLICY), "/ready"),
)


@contextmanager
def _backends(scratch: Path) -> Iterator[int]:
    """Two backends in one process and one that will hang in another, whose process id is yielded."""
    command = [sys.executable, "-m", "benchmarks.slow_backends", f"--slots={SLOTS}", f"--service-ms={SERVICE_MS}"]
    others, hanging = FIRST_PORT + 1, FIRST_PORT
    with (
        server(
            [*command, f"--first-port={others}", f"--count={COUNT - 1}"],
            ready_url=f"http://127.0.0.1:{others}/",
            log=scratch / "others.log",
        ),
        server(
            [*command, f"--first-port={hanging}", "--count=1"],
            ready_url=f"http://127.0.0.1:{hanging}/",
            log=scratch / "hanging.log",
        ) as pid,
    ):
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGCONT)  # a stopped process does not end by SIGTERM


async def _offer(seconds: float, seed: int, hang: Callable[[], None]) -> tuple[Seen, Seen]:
    """A stretch with three backends, and one in whose beginning `hang` stops one of them."""
    rng = random.Random(seed)
    load = Load(
        protocol="h3",
        port=PORT,
        realtime_rate=RATE,
        batch_rate=0.0,
        seconds=seconds,
        realtime_deadline_s=DEADLINE_S,
        batch_deadline_s=DEADLINE_S,
        connections=0,
        seed=seed,
    )
    async with AsyncExitStack() as stack:
        ask = await http3(load, stack)
        before = await _stretch(ask, seconds, rng)
        hang()
        return before, await _stretch(ask, seconds, rng)


async def _stretch(ask: Ask, seconds: float, rng: random.Random) -> Seen:
    seen, start, at = Seen(), monotonic(), rng.expovariate(RATE)
    async with asyncio.TaskGroup() as asking:
        while at < seconds:
            await asyncio.sleep(max(0.0, start + at - monotonic()))
            asking.create_task(_one(ask, seen))
            at += rng.expovariate(RATE)
    return seen


async def _one(ask: Ask, seen: Seen) -> None:
    began = monotonic()
    try:
        async with asyncio.timeout(PATIENCE_S):
            status = await ask("realtime")
    except TimeoutError:
        status = "no answer"
    wait = monotonic() - began
    seen.outcomes[status] += 1
    seen.waits.append(wait)
    if status == "200":
        seen.good.append(wait)


def measure(peer: Peer, seconds: float, seed: int) -> dict[str, Any]:
    """One gateway with its own backends, well and with one that hangs."""
    with tempfile.TemporaryDirectory(prefix="bench-hung-") as folder:
        scratch = Path(folder)
        with _backends(scratch) as hanging:
            ready = f"http://127.0.0.1:{ADMIN_PORT}{peer.ready}"
            with server(peer.command(scratch), ready_url=ready, log=scratch / "gateway.log"):
                well, hung = asyncio.run(_offer(seconds, seed, lambda: os.kill(hanging, signal.SIGSTOP)))
    return {"name": peer.name, "well": well.report(), "hung": hung.report()}


def _table(rows: list[dict[str, Any]], seconds: float) -> Table:
    table = Table(
        title=f"{COUNT} backends of {SLOTS} x {SERVICE_MS:.0f} ms, one hangs after {seconds:.0f} s, "
        f"{RATE:.0f} requests/s, deadline {DEADLINE_S:g} s"
    )
    headings = ("gateway", "", "in time", "p50 ms", "p99 ms", "longest ms", "too late", "outcomes")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("gateway", "", "outcomes") else "right")
    for row in rows:
        for name in ("well", "hung"):
            each = row[name]
            table.add_row(
                row["name"] if name == "well" else "",
                name,
                f"{each['in_time']:.2%}",
                *(f"{each[key]:.0f}" if each[key] is not None else "-" for key in ("p50_ms", "p99_ms", "longest_ms")),
                str(each["too_late"]),
                ", ".join(f"{status}: {count}" for status, count in sorted(each["outcomes"].items())),
                end_section=name == "hung",
            )
    return table


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=12, help="before one hangs, and again behind it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the gateways whose names begin so")
    arguments = parser.parse_args()
    screen = console()
    rows = []
    try:
        for peer in PEERS:
            if arguments.only is None or peer.name.startswith(arguments.only):
                screen.log(peer.name)
                rows.append(measure(peer, arguments.seconds, arguments.seed))
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    screen.print(_table(rows, arguments.seconds))
    screen.print(write_report("hung", {"rate": RATE, "deadline_s": DEADLINE_S, "gateways": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
