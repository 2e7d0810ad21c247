# SPDX-License-Identifier: Apache-2.0
"""What a full link adds to the first class: probes and inference requests, with one FIFO and under the plan.

Three namespaces: the gateway's host, a hop of 20 Mbit/s that serialises (a real TBF with one FIFO), and the backends
behind it. Ours shapes the host's link to 95 % of the hop. The flood goes the requests' way. Needs root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from benchmarks.datagram import identity
from benchmarks.processes import ServerError, quantile
from benchmarks.report import console, write_report
from qos.selftest.lab import Lab, LabError, lab
from qos.selftest.traffic import Flood
from qos.selftest.trial import RATE, Phase, flooding, phase, put_in_force
from qos.tc.policy import built_in_policy

ROOT = Path(__file__).parent.parent
MAGIKA = ROOT / "models" / "magika" / "model.onnx"
KINDS = ("udp", "tcp", "train")
ASKED = tuple((model, transport) for model in ("identity", "magika") for transport in ("udp", "https"))
ENDPOINTS = {"udp": "{{datagram: '{address}:4434', slots: 8}}", "https": "{{oip: 'http://{address}:8000', slots: 8}}"}
START_S = 30.0


def config(built: Lab) -> str:
    """A gateway on src's loopback whose backends are behind the hop: one pool a model and transport."""
    pools = [
        f"  - {{name: {model}-{transport}, model: {model}_{transport}, "
        f"endpoints: [{ENDPOINTS[transport].format(address=built.dst_address)}]}}"
        for model, transport in ASKED
    ]
    return "\n".join(
        [
            "version: 1",
            # Long enough to measure what one FIFO does to it; by default realtime has 50 ms.
            "classes:",
            "  - {name: realtime, dscp: EF, deadline: 2s}",
            "  - {name: interactive, dscp: AF21, deadline: 2s, default: true}",
            "trust: {class_from: [127.0.0.0/8]}",
            "listeners: [{name: main, bind: ['127.0.0.1:4433'], tls: development, max_class: realtime}]",
            "pools:",
            *pools,
            "log: {level: warning}",
            "",
        ]
    )


@contextmanager
def running(namespace: str, arguments: Sequence[str], log: Path, ready: str) -> Iterator[None]:
    """One `inferlane` process inside a namespace until the block ends, once `ready` is in its log or answers."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "proxy", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        until = time.monotonic() + START_S
        curl = "import sys,urllib.request as r; r.urlopen(sys.argv[1], timeout=1)"
        probe = ["ip", "netns", "exec", namespace, sys.executable, "-c", curl, ready]
        while subprocess.run(probe, capture_output=True, check=False, timeout=10).returncode:
            if process.poll() is not None or time.monotonic() > until:
                raise ServerError(f"{arguments[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def servers(built: Lab, scratch: Path) -> Iterator[None]:
    """`inferlane serve` behind the hop, the gateway before it."""
    for model, transport in ASKED:
        folder = scratch / "models" / f"{model}_{transport}"
        folder.mkdir(parents=True)
        if model == "identity":
            onnx.save(identity(), folder / "model.onnx")
        else:
            shutil.copy(MAGIKA, folder)
    conf = scratch / "gateway.yaml"
    conf.write_text(config(built))
    serve = ["serve", str(scratch / "models"), "--http", f"{built.dst_address}:8000"]
    serve += ["--udp", f"{built.dst_address}:4434"]
    run = ["run", str(conf), "--state-dir", str(scratch / "state")]
    with (
        running(built.dst, serve, scratch / "serve.log", f"http://{built.dst_address}:8000/v2/health/ready"),
        running(built.src, run, scratch / "gateway.log", "http://127.0.0.1:9433/readyz"),
    ):
        yield


def requests(built: Lab, wanted: Flood | None, seconds: float) -> dict[str, Any]:
    """p50 and p99 in ms and failures of 20 requests/s. One at a time: all fill two cores."""
    client = ["ip", "netns", "exec", built.src, sys.executable, "-m", "benchmarks.link_client"]
    found = {}
    for model, transport in ASKED:
        asked = [f"{transport}://127.0.0.1:4433", f"{model}_{transport}", "--seconds", str(seconds)]
        with flooding(built, wanted) if wanted is not None else nullcontext():
            process = subprocess.Popen([*client, *asked], stdout=subprocess.PIPE, cwd=ROOT)
            found[f"{model} {transport}"] = _figures(process, seconds)
    return found


def _figures(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise ServerError(f"the client ended with {process.returncode}")
    said = json.loads(output)
    ordered = sorted(said["latencies"])
    return {
        "answered": len(ordered),
        "failed": len(said["failures"]),
        "p50_ms": quantile(ordered, 0.5) * 1e3 if ordered else None,
        "p99_ms": quantile(ordered, 0.99) * 1e3 if ordered else None,
    }


def measure(seconds: float, rounds: int, only: str) -> dict[str, Any]:
    """Every phase, `rounds` times with one FIFO, then under the plan. only: `probes`, `requests` or "" for both."""
    here = built_in_policy()
    tried = [each for each in here.classes if each.share > 0]
    floods = {kind: Flood(kind=kind, rate=RATE * 3 // 2, dscp=1, seconds=seconds + 20) for kind in KINDS}
    results: dict[str, Any] = {"probes": [], "requests": []}
    with (
        tempfile.TemporaryDirectory(prefix="bench-link-") as scratch,
        lab(RATE) as built,
        servers(built, Path(scratch)),
    ):
        for planned in (False, True):
            plan = "plan" if planned else "one FIFO"
            if planned:
                put_in_force(here, built)
            for turn in range(rounds):
                for kind in ("idle", *KINDS) if only != "requests" else ():
                    measured = phase(kind, built, tried, floods.get(kind), seconds)
                    results["probes"].append({"plan": plan, "round": turn, **_plain(measured)})
                for kind in ("idle", "udp") if only != "probes" else ():
                    asked = requests(built, floods.get(kind), seconds)
                    results["requests"].append({"plan": plan, "round": turn, "flood": kind} | asked)
    return results


def _plain(measured: Phase) -> dict[str, Any]:
    first = measured.classes["realtime"]
    return {
        "flood": measured.name,
        "bulk_mbit": measured.bulk / 1e6,
        "lost": first.lost,
        "sent": first.sent,
        "p50_ms": first.p50_s * 1e3,
        "p99_ms": first.p99_s * 1e3,
    }


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Realtime probes; realtime requests."""
    table = Table(title="Realtime probes of 200 bytes, 100/s")
    for heading in ("link", "flood", "round", "p50 ms", "p99 ms", "lost", "all Mbit/s"):
        table.add_column(heading, justify="right")
    for row in results["probes"]:
        times = (f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}")
        table.add_row(
            row["plan"],
            row["flood"],
            str(row["round"]),
            *times,
            f"{row['lost']}/{row['sent']}",
            f"{row['bulk_mbit']:.1f}",
        )
    yield table
    table = Table(title="Realtime requests through the gateway, 20/s each, p50 / p99 ms (failed)")
    for heading in ("link", "flood", "round", *(f"{model} {transport}" for model, transport in ASKED)):
        table.add_column(heading, justify="right")
    for row in results["requests"]:
        cells = [row[f"{model} {transport}"] for model, transport in ASKED]
        table.add_row(
            row["plan"],
            row["flood"],
            str(row["round"]),
            *(f"{_ms(each['p50_ms'])} / {_ms(each['p99_ms'])} ({each['failed']})" for each in cells),
        )
    yield table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=("probes", "requests"), default="")
    arguments = parser.parse_args()
    screen = console()
    try:
        results = measure(arguments.seconds, arguments.rounds, arguments.only)
    except (ServerError, LabError) as error:
        screen.print(error, style="red", markup=False)
        return 1
    for table in tables(results):
        screen.print(table)
    screen.print(write_report("link", results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
