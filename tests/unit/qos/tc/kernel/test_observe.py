# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

from qos.tc.capabilities import LinkFacts
from qos.tc.kernel.attributes import nested, text
from qos.tc.kernel.filter_codec import Outside, encode_filter
from qos.tc.kernel.observe import TC_MESSAGE, Listed, filter_parents, link_state, parse_tc
from qos.tc.kernel.qdisc_codec import encode_class, encode_qdisc
from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    INGRESS_HOOK,
    ROOT,
    U32,
    Bfifo,
    Clsact,
    Filter,
    Htb,
    HtbClass,
    LinkState,
    Qdisc,
    Redirect,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
)

ETH0 = LinkFacts(name="eth0", index=2, up=True, mtu=1500, tx_queues=1, gso_max_size=65536)
CLASS = HtbClass(rate=1000, ceil=2000, burst=10, cburst=20, prio=1, quantum=1514)
OURS = [
    (0x51A0000, ROOT, Htb(0x30)),
    (0x300000, 0x51A0030, Bfifo(1000)),
]
MATCH = U32(((0, 5, 7),), 0x51A0030)


def listed(handle: int, parent: int, kind: str, options: bytes | None, info: int = 0) -> Listed:
    return Listed(index=2, handle=handle, parent=parent, info=info, kind=kind, options=options, statistics=None)


def qdisc(handle: int, parent: int, options: Htb | Bfifo) -> Listed:
    return listed(handle, parent, type(options).__name__.lower(), encode_qdisc(options))


def state(**parts: object) -> LinkState:
    whole = {"qdiscs": (), "classes": (), "filters": {}, **parts}
    return link_state(ETH0, {2: "eth0", 9: "ifb-eth0"}, **whole)


def info(pref: int, protocol: int) -> int:
    return pref << 16 | socket.htons(protocol)


def test_a_message_is_read_to_what_it_lists():
    body = (
        TC_MESSAGE.pack(0, 0, 0, 2, 0x51A0030, ROOT, 7) + text(1, "htb") + nested(2, b"12345678") + nested(7, b"stat")
    )
    found = parse_tc(body)
    assert (found.index, found.handle, found.parent, found.info, found.kind) == (2, 0x51A0030, ROOT, 7, "htb")
    assert (found.options, found.statistics) == (b"12345678", b"stat")


def test_our_tree_is_read_in_the_order_of_its_handles():
    found = state(
        qdiscs=[qdisc(*each) for each in reversed(OURS)],
        classes=[listed(0x51A0030, 0x51A0001, "htb", encode_class(CLASS))],
    )
    assert found.qdiscs == (Qdisc(*OURS[1]), Qdisc(*OURS[0]))
    assert found.classes == (TcClass(0x51A0030, 0x51A0001, CLASS),)
    assert found.gso_max_size == 65536


def test_a_class_right_below_its_qdisc_has_it_as_its_parent():
    found = state(qdiscs=[qdisc(*OURS[0])], classes=[listed(0x51A0001, ROOT, "htb", encode_class(CLASS))])
    assert found.classes == (TcClass(0x51A0001, 0x51A0000, CLASS),)


def test_a_strangers_tree_is_kept_as_it_came():
    options, of_class = encode_qdisc(Htb(1)), encode_class(CLASS)
    found = state(
        qdiscs=[listed(0x10000, ROOT, "htb", options), listed(0x20000, 0x10001, "bfifo", b"\1\0\0\0")],
        classes=[listed(0x10001, ROOT, "htb", of_class)],
        filters={0x10000: [listed(1, 0x10000, "flower", b"\5\0\1\0\0\0\0\0", info(1, 0x0800))]},
    )
    assert found.qdiscs == (
        Qdisc(0x10000, ROOT, Unread("htb", options)),
        Qdisc(0x20000, 0x10001, Unread("bfifo", b"\1\0\0\0")),
    )
    assert found.classes == (TcClass(0x10001, 0x10000, UnreadClass("htb", of_class)),)
    assert found.filters == (Filter(0x10000, 1, 0x0800, 1, UnreadFilter("flower", b"\5\0\1\0\0\0\0\0")),)


def test_what_the_kernel_made_by_itself_is_in_no_state():
    found = state(
        qdiscs=[listed(0, ROOT, "noqueue", None), qdisc(0, 0x51A0030, Bfifo(1))],
        classes=[listed(0x10001, 0x10000, "fq_codel", None), listed(0x10002, 0x10000, "prio", None)],
    )
    assert (found.qdiscs, found.classes) == ((), ())


def test_at_the_hooks_ours_are_known_by_their_preference():
    redirect = encode_filter(Redirect("ifb-eth0"), 3, Outside(ifindex=9, matchall=False))
    theirs = encode_filter(MATCH, 3, Outside())
    found = state(
        qdiscs=[listed(0xFFFF0000, CLSACT, "clsact", b"")],
        filters={
            INGRESS_HOOK: [
                listed(0, INGRESS_HOOK, "u32", None, info(0x51A0, 3)),
                listed(0x80000000, INGRESS_HOOK, "u32", nested(4, b"\1\0\0\0"), info(0x51A0, 3)),
                listed(0x80000001, INGRESS_HOOK, "u32", redirect, info(0x51A0, 3)),
                listed(0x80100800, INGRESS_HOOK, "u32", theirs, info(1, 3)),
            ]
        },
    )
    assert found.qdiscs == (Qdisc(0xFFFF0000, CLSACT, Clsact()),)
    assert found.filters == (
        Filter(INGRESS_HOOK, 1, 3, 0x80100800, UnreadFilter("u32", theirs)),
        Filter(INGRESS_HOOK, 0x51A0, 3, 1, Redirect("ifb-eth0")),
    )


def test_below_our_root_every_filter_is_ours():
    sent = encode_filter(MATCH, 0x86DD, Outside())
    found = state(
        qdiscs=[qdisc(*OURS[0])],
        filters={0x51A0000: [listed(0x80000800, 0x51A0000, "u32", sent, info(2, 0x86DD))]},
    )
    assert found.filters == (Filter(0x51A0000, 2, 0x86DD, 0x80000800, MATCH),)


def test_filters_are_asked_for_where_some_can_be():
    made = [qdisc(*each) for each in OURS]
    assert filter_parents(made) == [0x51A0000]
    assert filter_parents([listed(0x20000, 0x51A0030, "prio", None)]) == [0x20000]
    assert filter_parents([listed(0xFFFF0000, CLSACT, "clsact", None)]) == [INGRESS_HOOK, EGRESS_HOOK]
    assert filter_parents([listed(0xFFFF0000, CLSACT, "ingress", None)]) == [INGRESS_HOOK]
    assert filter_parents([listed(0, ROOT, "noqueue", None)]) == []
