# SPDX-License-Identifier: Apache-2.0
"""Which filter takes which one's place."""

from __future__ import annotations

from msgspec.structs import replace

from qos.tc.reconcile.filters import conflicting, pairs, removals
from qos.tc.state import EGRESS_HOOK, INGRESS_HOOK, U32, Bpf, Filter, Flower, Redirect


def u32(word: int, handle: int = 0, pref: int = 1, classid: int = 0x51A0016) -> Filter:
    return Filter(0x51A0000, pref, 0x0800, handle, U32(((0, word, 0xFC),), classid))


def test_a_filter_without_a_number_is_content_with_any_that_says_the_same() -> None:
    have = [u32(1, 0x80000800), u32(2, 0x80000801)]
    paired, left = pairs(have, [u32(2), u32(3)])
    assert paired == [(have[1], u32(2)), (None, u32(3))]
    assert left == [have[0]]


def test_one_that_is_there_twice_is_wanted_once() -> None:
    have = [u32(1, 0x80000800), u32(1, 0x80000801)]
    paired, left = pairs(have, [u32(1)])
    assert paired == [(have[0], u32(1))]
    assert left == have[1:]


def test_a_number_is_a_place_whatever_is_there() -> None:
    have = [u32(1, 0x80000800)]
    assert pairs(have, [u32(2, 0x80000800)]) == ([(have[0], u32(2, 0x80000800))], [])
    assert pairs(have, [u32(1, 0x80000801)]) == ([(None, u32(1, 0x80000801))], have)


def test_a_preference_has_one_redirection() -> None:
    old, new = (Filter(INGRESS_HOOK, 0x51A0, 3, handle, Redirect(to)) for handle, to in ((1, "ifb-a"), (0, "ifb-b")))
    assert pairs([old], [new]) == ([(old, new)], [])


def test_another_protocol_or_kind_at_a_preference_must_go_first() -> None:
    have = [u32(1, 0x80000800), u32(1, 0x80000800, pref=2), Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-1"))]
    other_protocol = replace(u32(1), protocol=0x86DD)
    assert conflicting(have, [other_protocol], ()) == have[:1]
    assert conflicting(have, [Filter(0x51A0000, 2, 0x0800, 1, Flower(0x51A0016))], ()) == have[1:2]
    assert conflicting(have, [Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-2"))], ()) == []


def test_a_filter_holds_its_class_on_the_root_but_not_at_a_hook() -> None:
    at_hook = Filter(EGRESS_HOOK, 0x51A1, 0x0800, 1, Flower(0x51A0016))
    assert conflicting([u32(1, 0x80000800), at_hook], [], {0x51A0016}) == [u32(1, 0x80000800)]


def test_a_preference_goes_as_a_whole_where_nothing_of_it_stays() -> None:
    have = [u32(1, 0x80000800), u32(2, 0x80000801), u32(1, 0x80100800, pref=2), u32(2, 0x80100801, pref=2)]
    assert removals(have, have[:3]) == ([replace(have[0], handle=0)], [have[2]])
