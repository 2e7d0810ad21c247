# SPDX-License-Identifier: Apache-2.0
"""Every class floods at once: what each one gets of the link, beside what it was promised. Needs root."""

from __future__ import annotations

import argparse
import socket
import sys
import time
from contextlib import ExitStack
from typing import Any

from rich.table import Table

from benchmarks.report import console, write_report
from qos.selftest.lab import Lab, LabError, lab
from qos.selftest.traffic import Flood, flood
from qos.selftest.trial import RATE, ROOM, put_in_force
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import LinkClass, built_in_policy

PORT = 9000


def measure(seconds: float) -> list[dict[str, Any]]:
    """Per class: Mbit/s promised and got, all offering 25 Mbit/s."""
    here = built_in_policy()
    with lab(RATE) as built, ExitStack() as stack:
        put_in_force(here, built)
        for each in here.classes:
            _flood(stack, built, each, seconds)
        time.sleep(2)  # until every queue is full
        before = _bytes(built)
        time.sleep(seconds)
        after = _bytes(built)
    return [
        {
            "class": each.name,
            "promised_mbit": each.share * RATE * ROOM / 1e6,
            "got_mbit": (after[each.rank] - before[each.rank]) * 8 / seconds / 1e6,
        }
        for each in here.classes
    ]


def _flood(stack: ExitStack, built: Lab, each: LinkClass, seconds: float) -> None:
    sink = stack.enter_context(built.socket(built.dst))
    sink.bind((built.dst_address, PORT + each.rank))
    sender = stack.enter_context(built.socket(built.src))
    # Small, so that a class's own socket buffer never holds what its queue should.
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sender.connect((built.dst_address, PORT + each.rank))
    wanted = Flood(kind="udp", rate=25_000_000, dscp=each.dscp, seconds=seconds + 10)
    stack.enter_context(flood(wanted, sender))


def _bytes(built: Lab) -> dict[int, int]:
    """Bytes sent so far, by rank: a class's minor is its rank + 1 and a digit."""
    with Kernel(built.src) as kernel:
        counters = kernel.counters(built.interface)
    found = {(handle & 0xFFFF) >> 4: each.bytes for handle, each in counters.items() if handle >> 16 == 0x51A}
    return {place - 1: count for place, count in found.items() if place}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    arguments = parser.parse_args()
    screen = console()
    try:
        rows = measure(arguments.seconds)
    except LabError as error:
        screen.print(error, style="red", markup=False)
        return 1
    table = Table(title=f"All classes offer 25 Mbit/s to a link of {RATE * ROOM / 1e6:g} Mbit/s")
    for heading in ("class", "promised Mbit/s", "got Mbit/s", "got / promised"):
        table.add_column(heading, justify="right")
    for row in rows:
        promised, got = row["promised_mbit"], row["got_mbit"]
        table.add_row(row["class"], f"{promised:.2f}", f"{got:.2f}", f"{got / promised:.2f}")
    screen.print(table)
    screen.print(write_report("link_shares", {"classes": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
