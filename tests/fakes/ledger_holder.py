# SPDX-License-Identifier: Apache-2.0
"""A process that takes all places of an endpoint and waits to be killed: at rest, or in the middle of a locked section.

python -m tests.fakes.ledger_holder LEDGER EVENT,EVENT,... ROW rest|locked
"""

from __future__ import annotations

import sys
import time

from backends.ledger.segment import Ledger
from tests.fakes.endpoints import pool_of
from tests.fakes.ledger_worker import SLOTS


def main() -> None:
    fd, events, row, where = sys.argv[1:]
    ledger = Ledger.attach(int(fd), row=int(row), event_fds=[int(each) for each in events.split(",")])
    pool = pool_of(SLOTS)
    pool.share(ledger)
    line = ledger.line(pool.name)
    with line:
        for _ in range(SLOTS):
            pool.endpoints[0].take(time.monotonic())
        line.took(0)
        line.announce(0, 5, 5, 1, time.monotonic())
        if where == "locked":
            print("ready", flush=True)  # noqa: T201
            time.sleep(600)
    print("ready", flush=True)  # noqa: T201
    time.sleep(600)


if __name__ == "__main__":
    main()
