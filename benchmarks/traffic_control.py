# SPDX-License-Identifier: Apache-2.0
"""What traffic control itself costs: time to plan and to apply 5 and 1,000 classes, and what the gateway feels of it.

The link is one of namespaces. Kernel time is this process's system time while it applies. The gateway's part is a loop
that ticks every millisecond while its helper process makes the whole tree: by how much its ticks are late, beside
the same loop with nothing going on. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from rich.table import Table

from benchmarks.processes import quantile
from benchmarks.report import console, write_report
from proxy.keeper import spawn
from proxy.telemetry.link_metrics import LinksSeen
from qos.selftest.lab import Lab, LabError, lab
from qos.settings import ClassSettings
from qos.tc.change import making
from qos.tc.change.ledger import Ledger
from qos.tc.change.lock import lock_file, lock_folder
from qos.tc.change.site import Site
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import LinkPolicy, link_policy
from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.survey import survey
from qos.tc.settings import FlowSettings, InterfaceSettings, SafetySettings

TICK_S = 1e-3
COUNTS = (5, 1000)


def policy(count: int, built: Lab) -> LinkPolicy:
    """So many classes on src's link, each with a flow of its own; the first has the mark EF."""
    classes = [
        ClassSettings(name=f"class-{place}", dscp=46 if place == 0 else 0, deadline=1.0, default=place == 1)
        for place in range(count)
    ]
    flows = [
        FlowSettings.model_validate(
            {"class": f"class-{place}", "dst": f"10.{place >> 8}.{place & 255}.0/24"}, context=None
        )
        for place in range(count)
    ]
    interface = InterfaceSettings(name=built.interface, netns=built.src, egress=10**9)
    return link_policy(classes, [interface], flows, SafetySettings())


def times(wanted: LinkPolicy, built: Lab) -> dict[str, Any]:
    """Milliseconds of the first plan, of applying it, and of planning again with nothing to do."""
    with Kernel(built.src) as kernel:
        start = time.perf_counter()
        first = survey(wanted, built.src, kernel)
        planned = time.perf_counter()
        system = os.times().system
        outcome = apply(
            kernel,
            first.compiled.desired,
            programs=first.compiled.programs,
            steps=first.steps,
            clock=time.monotonic,
            sleep=time.sleep,
        )
        applied = time.perf_counter()
        system = os.times().system - system
        again = survey(wanted, built.src, kernel)
        finished = time.perf_counter()
    return {
        "steps": len(first.steps),
        "failure": outcome.failure,
        "plan_ms": (planned - start) * 1e3,
        "apply_ms": (applied - planned) * 1e3,
        "apply_system_ms": system * 1e3,
        "plan_again_ms": (finished - applied) * 1e3,
        "steps_again": len(again.steps),
    }


def site_of(state: Path) -> Site:
    """Books in `state`."""
    ledger = Ledger(state / "qos")
    return Site(ledger=ledger, lock_of=partial(lock_file, folder=lock_folder(ledger.folder)))


async def lateness(seconds: float, until_made: asyncio.Event | None = None) -> list[float]:
    """By how much each tick of this loop is late, seconds, sorted."""
    late: list[float] = []
    end = time.perf_counter() + seconds
    due = time.perf_counter() + TICK_S
    while due < end and not (until_made is not None and until_made.is_set()):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append(time.perf_counter() - due)
        due = max(due + TICK_S, time.perf_counter())
    return sorted(late)


async def stalls(wanted: LinkPolicy, state: Path) -> dict[str, Any]:
    """A loop alone, then beside the helper that makes the whole tree."""
    alone = await lateness(3.0)
    made = asyncio.Event()

    def show(seen: LinksSeen) -> None:
        if seen.links:
            made.set()

    keeper = spawn(wanted, state)
    assert keeper is not None
    await keeper.start(show)
    try:
        beside = await lateness(30.0, made)
    finally:
        await keeper.close()
    return {
        "made": made.is_set(),
        **{
            f"{name}_{label}_ms": quantile(ticks, share) * 1e3
            for name, ticks in (("alone", alone), ("beside", beside))
            for label, share in (("p99", 0.99), ("max", 1.0))
        },
    }


def measure(count: int) -> dict[str, Any]:
    """One size: times on one link, then the helper's own start on another, whose books say that it was confirmed."""
    with lab(10**9) as built:
        result = {"classes": count, **times(policy(count, built), built)}
    with lab(10**9) as built, tempfile.TemporaryDirectory(prefix="bench-tc-") as folder:
        wanted = policy(count, built)
        making.apply(site_of(Path(folder)), wanted)
        with Kernel(built.src) as kernel:
            root = next(
                each for each in kernel.observe([built.interface]).links[0].qdiscs if each.handle >> 16 == 0x51A
            )
            kernel.delete(built.interface, root)
        result |= uvloop.run(stalls(wanted, Path(folder)))
    return result


def main() -> int:
    """The command line."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    screen = console()
    try:
        results = [measure(count) for count in COUNTS]
    except LabError as error:
        screen.print(error, style="red", markup=False)
        return 1
    table = Table(title="Traffic control")
    table.add_column("")
    for each in results:
        table.add_column(f"{each['classes']} classes", justify="right")
    for name in list(results[0])[1:]:
        table.add_row(
            name, *(f"{each[name]:.1f}" if isinstance(each[name], float) else str(each[name]) for each in results)
        )
    screen.print(table)
    screen.print(write_report("traffic_control", {"sizes": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
