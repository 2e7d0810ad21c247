# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    OUR_MAJORS,
    ROOT,
    U32,
    Bfifo,
    Bpf,
    Clsact,
    Ets,
    Filter,
    Htb,
    HtbClass,
    LinkState,
    NetworkState,
    Qdisc,
    TcClass,
    Unread,
    handle_text,
    is_our_qdisc,
)


@pytest.mark.parametrize(
    ("handle", "text"),
    [(ROOT, "root"), (0x51A0000, "51a:"), (0x51A0016, "51a:16"), (0x160000, "16:"), (0x80010000, "8001:"), (1, "0:1")],
)
def test_handles_are_written_as_tc_writes_them(handle, text):
    assert handle_text(handle) == text


@pytest.mark.parametrize("major", OUR_MAJORS)
def test_only_a_root_with_one_of_our_majors_is_ours(major):
    assert is_our_qdisc(Qdisc(major << 16, ROOT, Htb(default=0x24)))
    assert not is_our_qdisc(Qdisc(major << 16, 0x10001, Htb(default=0x24)))
    assert not is_our_qdisc(Qdisc(0x80010000, ROOT, Htb(default=0x24)))


def test_a_state_is_found_by_its_device():
    state = NetworkState(links=(LinkState(name="eth0"), LinkState(name="ifb-eth0", ifb_for="eth0")))
    assert state.link("ifb-eth0") == LinkState(name="ifb-eth0", ifb_for="eth0")
    assert state.link("eth1") is None


def test_a_state_can_be_kept_and_read_back():
    shape = HtbClass(rate=1, ceil=2, burst=3, cburst=4, prio=5, quantum=6, overhead=7)
    link = LinkState(
        name="eth0",
        qdiscs=(
            Qdisc(0x51A0000, ROOT, Htb(default=0x24)),
            Qdisc(0x160000, 0x51A0016, Bfifo(limit=3000)),
            Qdisc(0x170000, 0x51A0017, Ets(bands=2, strict=1, quanta=(1514,), priomap=(0,) * 16)),
            Qdisc(0xFFFF0000, CLSACT, Clsact()),
            Qdisc(0x180000, 0x51A0018, Unread("sfq", b"\x00\xff")),
        ),
        classes=(TcClass(0x51A0016, 0x51A0001, shape),),
        filters=(
            Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-0")),
            Filter(0x51A0000, 1, 0x800, 0, U32(((0, 0xB80000, 0xFC0000),), 0x51A0016)),
        ),
        gso_max_size=1514,
    )
    state = NetworkState(netns="edge", links=(link,))
    assert msgspec.json.decode(msgspec.json.encode(state), type=NetworkState) == state
