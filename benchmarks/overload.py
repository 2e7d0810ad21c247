# SPDX-License-Identifier: Apache-2.0
"""Eight backends offered 1.5 times their capacity, a fifth of it realtime: whose is late, here and at our peers?

Each gateway is set up as its own experts would, and gets the same arrivals: first realtime alone, then everything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rich.table import Table

from benchmarks.processes import ServerError, cpu_seconds, envoy_command, server
from benchmarks.report import console, write_report
from proxy.certificate import development_certificate

HERE = Path(__file__).parent
ROOT = HERE.parent
FIRST_PORT, COUNT, SERVICE_MS = 5040, 8, 50.0
CAPACITY = COUNT * 1e3 / SERVICE_MS
PORT, ADMIN_PORT = 5434, 9534
BATCH_DEADLINE_S = 30


@dataclass(frozen=True, slots=True)
class Peer:
    """One gateway as it is set up."""

    name: str
    protocol: str
    command: Callable[[Path], list[str]]
    ready: str


def _fill(name: str, scratch: Path, endpoint: str, **more: object) -> Path:
    """A template of this folder with the servers in it, in the scratch folder."""
    endpoints = "\n".join(endpoint.format(index=index, port=FIRST_PORT + index) for index in range(COUNT))
    file = scratch / name
    text = Template((HERE / name).read_text()).substitute(
        endpoints=endpoints, port=PORT, admin_port=ADMIN_PORT, batch_deadline=f"{BATCH_DEADLINE_S}s", **more
    )
    file.write_text(text)
    return file


def _inferlane(scratch: Path) -> list[str]:
    config = _fill("overload.yaml", scratch, '      - {{oip: "http://127.0.0.1:{port}", slots: 1}}')
    return [sys.executable, "-m", "proxy", "run", str(config), "--state-dir", str(scratch / "state")]


def _envoy(default_requests: int) -> Callable[[Path], list[str]]:
    def command(scratch: Path) -> list[str]:
        certificate, key = development_certificate(scratch)
        address = "{{address: 127.0.0.1, port_value: {port}}}"
        endpoint = f"        - endpoint: {{{{address: {{{{socket_address: {address}}}}}}}}}"
        config = _fill(
            "overload_envoy.yaml",
            scratch,
            endpoint,
            certificate=certificate,
            key=key,
            default_requests=default_requests,
        )
        return envoy_command(config)

    return command


def _haproxy(scratch: Path) -> list[str]:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        raise ServerError("HAProxy is not installed: apt-get install haproxy")
    config = _fill("overload_haproxy.cfg", scratch, "  server s{index} 127.0.0.1:{port} maxconn 1")
    return [program, "-db", "-f", str(config)]


PEERS = (
    Peer("inferlane", "h3", _inferlane, "/readyz"),
    Peer("envoy, no limits", "h3", _envoy(4096), "/ready"),
    Peer("envoy, 6 for batch", "h3", _envoy(6), "/ready"),
    Peer("haproxy, over HTTP/1.1", "h1", _haproxy, "/"),
)


@contextmanager
def _backends(scratch: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.slow_backends", f"--first-port={FIRST_PORT}", f"--count={COUNT}"]
    with server(
        [*command, f"--service-ms={SERVICE_MS}"],
        ready_url=f"http://127.0.0.1:{FIRST_PORT}/",
        log=scratch / "backends.log",
    ):
        yield


def _load(peer: Peer, seconds: float, batch_rate: float, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.open_load", f"--protocol={peer.protocol}", f"--port={PORT}"]
    command += [f"--seconds={seconds}", f"--batch-rate={batch_rate}", f"--seed={seed}"]
    command += [f"--realtime-rate={0.3 * CAPACITY}", f"--batch-deadline-s={BATCH_DEADLINE_S}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=seconds + BATCH_DEADLINE_S + 60
    )
    if done.returncode:
        raise ServerError(f"{peer.name}: {done.stderr.strip()[-2000:]}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def measure(peer: Peer, seconds: float, seed: int) -> dict[str, Any]:
    """One gateway with its own servers, realtime alone and under everything."""
    with tempfile.TemporaryDirectory(prefix="bench-overload-") as folder:
        scratch = Path(folder)
        with _backends(scratch):
            ready = f"http://127.0.0.1:{ADMIN_PORT}{peer.ready}"
            with server(peer.command(scratch), ready_url=ready, log=scratch / "gateway.log") as pid:
                alone = _load(peer, seconds, 0, seed)
                before = cpu_seconds(pid)
                loaded = _load(peer, seconds, 1.2 * CAPACITY, seed)
                used = cpu_seconds(pid) - before
    realtime, batch = loaded["realtime"], loaded["batch"]
    sent = realtime["sent"] + batch["sent"]
    return {
        "name": peer.name,
        "alone": alone,
        "loaded": loaded,
        "p99_ratio": realtime["p99_ms"] / alone["realtime"]["p99_ms"],
        "in_time": realtime["in_time"] / realtime["sent"],
        # What was answered in time while load came in, against what could have been.
        "goodput": (realtime["in_time_under_load"] + batch["in_time_under_load"]) / (CAPACITY * seconds),
        "batch_per_s": batch["in_time_under_load"] / seconds,
        "cpu_us": used / sent * 1e6,
    }


def _table(rows: list[dict[str, Any]], seconds: float) -> Table:
    table = Table(
        title=f"8 servers of 50 ms, offered {1.5 * CAPACITY:.0f}/s for {seconds:.0f} s, 20 % realtime (500 ms)"
    )
    headings = ("gateway", "alone p99 ms", "p50 ms", "p99 ms", "p99 ratio", "in time", "goodput", "batch/s", "CPU µs")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "gateway" else "right")
    for row in rows:
        realtime = row["loaded"]["realtime"]
        table.add_row(
            row["name"],
            f"{row['alone']['realtime']['p99_ms']:.0f}",
            f"{realtime['p50_ms']:.0f}",
            f"{realtime['p99_ms']:.0f}",
            f"{row['p99_ratio']:.2f}",
            f"{row['in_time']:.2%}",
            f"{row['goodput']:.3f}",
            f"{row['batch_per_s']:.0f}",
            f"{row['cpu_us']:.0f}",
        )
    return table


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the gateway whose name begins so")
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
    screen.print(write_report("overload", {"capacity": CAPACITY, "gateways": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
