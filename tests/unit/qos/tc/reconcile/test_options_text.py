# SPDX-License-Identifier: Apache-2.0
"""Options in words."""

from __future__ import annotations

from msgspec.structs import replace

from qos.tc.reconcile.options_text import difference, summary, tc_words
from qos.tc.state import U32, Bfifo, Bpf, Ets, HtbClass, Redirect, Unread
from tests.fakes.tc_states import fq_codel


def test_what_differs_is_named_with_its_units() -> None:
    old = HtbClass(rate=750_000, ceil=2_500_000, burst=1, cburst=1, prio=0, quantum=1514)
    assert difference(old, replace(old, rate=875_000, prio=1)) == "rate 6mbit -> 7mbit, prio 0 -> 1"
    assert difference(old, old) == "again"
    assert difference(Bfifo(9000), fq_codel(2)).startswith("bfifo limit 9000 -> fq_codel limit 2 target")
    one, other = U32(((0, 1, 255),), 0x51A0016), U32(((0, 1, 255),), 0x51A0024)
    assert difference(one, other) == "classid 51a:16 -> 51a:24"
    assert difference(Ets(2, 1, (3000,), (0,)), Ets(2, 1, (1500,), (0,))) == "quanta [3000] -> [1500]"


def test_what_is_asked_first() -> None:
    assert summary(HtbClass(rate=750_000, ceil=2_500_000, burst=1, cburst=1, prio=0, quantum=1514)) == (
        "rate 6mbit ceil 20mbit"
    )
    assert summary(Redirect("ifb-eth0")) == "all to ifb-eth0"
    assert summary(Unread("tbf", b"")) == "tbf"
    assert summary(Bpf("inferlane-1")) == "inferlane-1"


def test_a_burst_is_at_least_what_its_ticks_say() -> None:
    # 64 ns a tick: 15,625 of them are a millisecond.
    words = tc_words(HtbClass(rate=1_500_001, ceil=3_000_000, burst=15_625, cburst=15_625, prio=0, quantum=0))
    assert "burst 1501 cburst 3000" in words
    assert "quantum" not in words
