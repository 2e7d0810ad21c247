# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from qos.tc.kernel.attributes import nested_attributes
from qos.tc.kernel.filter_codec import Outside
from qos.tc.kernel.observe import TC_MESSAGE, parse_tc
from qos.tc.kernel.qdisc_codec import encode_class, encode_qdisc
from qos.tc.kernel.requests import described, place_of, request_for
from qos.tc.state import (
    CLSACT,
    INGRESS_HOOK,
    ROOT,
    Bfifo,
    Bpf,
    Clsact,
    Filter,
    HtbClass,
    Qdisc,
    Redirect,
    TcClass,
    UnreadFilter,
)

LEAF = Qdisc(0x300000, 0x51A0030, Bfifo(1000))
CLASS = TcClass(0x51A0030, 0x51A0001, HtbClass(rate=1, ceil=2, burst=3, cburst=4, prio=5, quantum=6))


@pytest.mark.parametrize(
    ("subject", "kind", "options"),
    [(LEAF, "bfifo", encode_qdisc(LEAF.options)), (CLASS, "htb", encode_class(CLASS.options))],
)
def test_a_request_says_where_what_and_how(subject, kind, options):
    found = parse_tc(request_for(subject, 7, Outside()))
    assert (found.index, found.handle, found.parent, found.info) == (7, subject.handle, subject.parent, 0)
    assert (found.kind, found.options) == (kind, options)


def test_a_kind_without_options_is_sent_without():
    request = request_for(Qdisc(0xFFFF0000, CLSACT, Clsact()), 7, Outside())
    assert nested_attributes(request[TC_MESSAGE.size :]) == {1: b"clsact\0"}


def test_a_filter_tells_its_preference_and_its_protocol_in_network_order():
    place = place_of(Filter(0x51A0000, 0x1234, 0x86DD, 5, Bpf("x")), 7)
    assert place == TC_MESSAGE.pack(0, 0, 0, 7, 5, 0x51A0000, 0x1234DD86)


def test_an_object_is_called_by_its_sort_kind_and_place():
    assert described(LEAF) == "qdisc bfifo 30:"
    assert described(CLASS) == "class htb 51a:30"
    assert described(Qdisc(0x51A0000, ROOT, Bfifo(1))) == "qdisc bfifo 51a:"
    assert described(Filter(INGRESS_HOOK, 9, 3, 1, Redirect("ifb"))) == "filter redirect pref 9 at ffff:fff2"
    assert described(Filter(0x51A0000, 9, 3, 1, UnreadFilter("fw", None))) == "filter fw pref 9 at 51a:"
