# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from qos.tc.change.plan_file import PlanFileError, Planned, Seen, planned_of, seen
from qos.tc.state import (
    EGRESS_HOOK,
    ROOT,
    Filter,
    LinkState,
    NetworkState,
    Qdisc,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
)
from tests.fakes.link_policies import policy_of

HERE = Seen(netns=None, digest="0123")
PLANNED = Planned(conf="/etc/g.yaml", policy=policy_of(), confirmed="a1", seen=(HERE,), steps=("+ eth0 root 51a:",))


def test_a_plan_is_read_as_it_was_written():
    assert planned_of(PLANNED.encoded(), "f") == PLANNED


@pytest.mark.parametrize(
    "content", [b"", b"version: 1\n", b"{}", b'{"listeners": []}', b"[1]", b'{"kind": "x", "format": 1}']
)
def test_a_config_is_no_plan(content):
    assert planned_of(content, "f") is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 2}, "f: a plan of format 2, this inferlane reads 1; make a new one"),
        ({"policy": 5}, "f: a damaged plan (Expected `object`, got `int`"),
    ],
)
def test_a_plan_that_cannot_be_read_is_told(change, complaint):
    content = msgspec.json.encode(msgspec.to_builtins(PLANNED) | change)
    with pytest.raises(PlanFileError) as refused:
        planned_of(content, "f")
    assert str(refused.value).startswith(complaint)


def test_what_moved_since_makes_it_stale():
    PLANNED.check(confirmed="a1", seen=[HERE])
    with pytest.raises(
        PlanFileError, match=r"another policy was confirmed .* \(a1 then, none now\); look at a new one"
    ):
        PLANNED.check(confirmed=None, seen=[HERE])
    with pytest.raises(PlanFileError, match="the kernel's state moved since this plan was made, in this namespace;"):
        PLANNED.check(confirmed="a1", seen=[Seen(netns=None, digest="4567")])
    with pytest.raises(PlanFileError, match=r"in other; look at a new one: inferlane qos plan /etc/g.yaml --out FILE"):
        PLANNED.check(confirmed="a1", seen=[HERE, Seen(netns="other", digest="1")])


def test_the_digest_is_of_both_states():
    one, other = NetworkState(netns="a"), NetworkState(netns="a", links=(LinkState(name="eth0"),))
    assert seen(one, other) == seen(one, other)
    assert seen(one, other).netns == "a"
    assert len({seen(one, one).digest, seen(one, other).digest, seen(other, one).digest}) == 3


def test_counters_among_the_options_of_others_make_no_plan_stale():
    def at(packets: bytes, kind: str = "u32") -> NetworkState:
        link = LinkState(
            name="eth0",
            qdiscs=(Qdisc(0x10000, ROOT, Unread("htb", packets)),),
            classes=(TcClass(0x10001, 0x10000, UnreadClass("htb", packets)),),
            filters=(Filter(EGRESS_HOOK, 1, 3, 1, UnreadFilter(kind, packets)),),
        )
        return NetworkState(links=(link,))

    assert seen(at(b"1"), NetworkState()) == seen(at(b"2"), NetworkState())
    assert seen(at(b"1"), NetworkState()) != seen(at(b"1", "flower"), NetworkState())
