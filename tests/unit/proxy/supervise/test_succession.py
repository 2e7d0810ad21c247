# SPDX-License-Identifier: Apache-2.0
"""The state that one program leaves to the next. Whether it goes on: tests/integration/test_upgrade.py."""

from __future__ import annotations

import os
from math import inf

import msgspec
import pytest

from proxy.supervise.channel import HandedChannel
from proxy.supervise.edition import HandedEdition
from proxy.supervise.generation import HandedGeneration
from proxy.supervise.merging import HandedTotals, Totals
from proxy.supervise.rows import version
from proxy.supervise.sockets import HandedAddress
from proxy.supervise.start import ConfigText
from proxy.supervise.succession import State, look, read_state, write_state
from proxy.supervise.upgrading import UpgradeError, UpgradeState
from proxy.supervise.worker_process import HandedWorker
from proxy.telemetry.families import Exported

CONFIG = """\
listeners: [{name: a, bind: ["127.0.0.1:0"], accept: [udp]}]
pools: [{name: p, model: "*", endpoints: [{oip: "http://127.0.0.1:9"}]}]
"""


def state_of(config: str = CONFIG) -> State:
    channel = HandedChannel(fd=7, next_number=9, held=b"\0\1")
    worker = HandedWorker(pid=1, channel=channel, name="worker 0.0", place=0, state="ready", since=1.5, unfinished=None)
    generation = HandedGeneration(number=3, first=2, restarts=[1], retiring=False, workers=[worker])
    totals = Totals()
    totals.hear("worker 0.0", [Exported("a", "", "counter", "sum", ("x",), [(("1",), (3.0, inf))])])
    return State(
        state_dir="/var/lib/inferlane",
        keys=bytes(128),
        editions=[
            HandedEdition(text=ConfigText(path="x", started=config), generation=generation, models=None, rows=None)
        ],
        sockets={"a": [HandedAddress(udp=[4, 5], tcp=None)]},
        admin=6,
        totals=totals.handed(),
        standing=[{"pool": "p", "endpoint": "e", "draining": True, "uid": 0}],
        upgrade=UpgradeState(state="done", number=2),
    )


def test_it_crosses_as_plain_data() -> None:
    state = state_of()
    fd = write_state(state)
    assert os.get_inheritable(fd)
    assert read_state(fd) == state
    os.close(fd)


def test_what_was_counted_goes_on() -> None:
    totals = Totals()
    totals.adopt(msgspec.convert(msgspec.to_builtins(state_of().totals), HandedTotals))
    totals.depart("worker 0.0")
    (page,) = totals.page({"worker 1.0": [Exported("a", "", "counter", "sum", ("x",), [(("1",), (1.0, 1.0))])]})
    assert list(page.samples) == [(("1",), (4.0, inf))]


async def test_the_program_on_disk_says_whether_it_can_go_on() -> None:
    assert version() and await look(state_of(), 2) is None
    with pytest.raises(UpgradeError, match="the program on disk cannot go on with what runs here: x:1:1"):
        await look(state_of("no config"), 2)


async def test_a_program_that_arranges_a_ledger_otherwise_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.supervise.succession.version", lambda: 1)
    rows = await look(state_of(), 2)
    assert rows is not None and rows.ledger is None and rows.rows == range(2) and len(rows.event_fds) == 4
    rows.close()
