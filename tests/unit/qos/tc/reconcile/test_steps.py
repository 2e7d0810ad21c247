# SPDX-License-Identifier: Apache-2.0
"""What the kernel does at once and what it does not."""

from __future__ import annotations

from msgspec.structs import replace

from qos.tc.reconcile.plan import Step, Subject, Verb, takes_two
from qos.tc.state import EGRESS_HOOK, U32, Bfifo, Bpf, Filter, Qdisc
from tests.fakes.tc_states import fq_codel


def step(new: Subject, old: Subject | None = None) -> Step:
    return Step(verb=Verb.REPLACE, device="eth0", subject=new, before=old)


def test_what_takes_two() -> None:
    bfifo, codel = Qdisc(0x160000, 0x51A0016, Bfifo(1)), Qdisc(0x160000, 0x51A0016, fq_codel())
    assert takes_two(step(codel, bfifo)), "a handle keeps its kind"
    assert not takes_two(step(replace(codel, handle=0x170000), bfifo))
    one_key, other_key = (Filter(0x51A0000, 1, 3, 0x80000800, U32(((0, word, 255),), 0x51A0016)) for word in (1, 2))
    assert takes_two(step(other_key, one_key)), "u32 keeps its keys"
    elsewhere = replace(one_key, options=replace(one_key.options, classid=0x51A0024))
    assert not takes_two(step(elsewhere, one_key))
    programs = [Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf(f"inferlane-{number}")) for number in (1, 2)]
    assert not takes_two(step(programs[1], programs[0])), "nothing is lost: the kernel swaps it"
    assert not takes_two(Step(verb=Verb.CHANGE, device="eth0", subject=codel, before=bfifo))
