# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.tc.design.engines import Queues, cake, ets, fq, htb, minor_of
from qos.tc.design.shape import Link
from qos.tc.policy import LinkClass
from qos.tc.state import ROOT, Bfifo, Cake, Ets, Fq, FqCodel, Htb
from qos.traffic_class import queue_priority
from tests.fakes.link_policies import policy_of

LINK = Link(rate=2_500_000, mtu=1500, overhead=24, gso_max_size=65536)
CLASSES = policy_of().classes
MAJOR = 0x51A


def classes_of(count: int, default: int) -> tuple[LinkClass, ...]:
    return tuple(
        LinkClass(
            name=f"c{rank}",
            rank=rank,
            dscp=rank % 64,
            owns_dscp=rank < 64,
            priority=queue_priority(rank, default, rank % 64),
            share=1 / count,
            ceiling=1.0,
            queue_s=0.1,
            default=rank == default,
        )
        for rank in range(count)
    )


MANY = st.integers(1, 60).flatmap(lambda count: st.integers(0, count - 1).map(lambda at: classes_of(count, at)))


def test_minors_keep_the_order_where_there_is_no_tree():
    assert [f"{minor_of(each):x}" for each in CLASSES] == ["16", "24", "30", "42"]
    assert max(minor_of(each) for each in classes_of(4095, 0)) < 0x10000


@pytest.mark.parametrize(("leaf", "kind"), [("bfifo", Bfifo), ("fq_codel", FqCodel)])
def test_htb_has_a_class_each_with_its_share_and_its_queue(leaf, kind):
    found = htb(LINK, CLASSES, MAJOR, leaf=leaf)
    root, *leaves = found.qdiscs
    assert (root.handle, root.parent, root.options) == (0x51A0000, ROOT, Htb(default=0x24))
    assert [(each.handle, each.parent) for each in leaves] == [
        (0x160000, 0x51A0016),
        (0x240000, 0x51A0024),
        (0x300000, 0x51A0030),
        (0x420000, 0x51A0042),
    ]
    assert all(isinstance(each.options, kind) for each in leaves)
    top, *below = found.classes
    assert (top.handle, top.parent, top.options.rate, top.options.ceil) == (0x51A0001, 0x51A0000, 2_500_000, 2_500_000)
    assert {each.parent for each in below} == {top.handle}
    assert [each.options.prio for each in below] == [0, 1, 2, 3]
    assert sum(each.options.rate for each in below) <= top.options.rate
    assert all(each.options.overhead == 24 for each in found.classes)
    assert found.handles == dict(
        zip(("realtime", "interactive", "batch", "background"), map(handle_of, below), strict=True)
    )
    assert found.labels[0x51A0016] == found.labels[0x160000] == "realtime"


def handle_of(each) -> int:
    return each.handle


def test_what_htb_cannot_do_as_said_is_told():
    slow = msgspec.structs.replace(LINK, rate=250_000)
    (warning,) = htb(slow, CLASSES, MAJOR, leaf="bfifo").warnings
    assert warning == (
        "a queue must hold a train of 67050 bytes, so at their guaranteed rates these may grow longer than their queue "
        "says: realtime 1.073s, interactive 1.073s, batch 1.073s, background 1.073s"
    )
    fast = msgspec.structs.replace(LINK, rate=125_000_000)
    assert htb(fast, CLASSES, MAJOR, leaf="bfifo").warnings == ()
    assert "in eight orders" in htb(fast, classes_of(9, 0), MAJOR, leaf="bfifo").warnings[-1]


def test_cake_has_four_tins_and_counts_from_the_ip_header_on():
    found = cake(LINK, CLASSES, MAJOR)
    assert found.qdiscs[0].options == Cake(bandwidth=2_500_000, diffserv=1, overhead=38)
    tins = {name: handle & 0xFFFF for name, handle in found.handles.items()}
    assert tins == {"realtime": 4, "interactive": 2, "batch": 1, "background": 1}
    assert found.labels == {0x51A0004: "realtime", 0x51A0002: "interactive", 0x51A0001: "batch, background"}
    assert found.sharing == "batch and background share one queue"
    assert not found.by_classid
    five = cake(LINK, classes_of(5, 3), MAJOR)
    assert [handle & 0xFFFF for handle in five.handles.values()] == [4, 3, 3, 2, 1]


def test_ets_has_strict_bands_above_the_default_class():
    found = ets(LINK, CLASSES, MAJOR, classified=True)
    options = found.qdiscs[0].options
    assert isinstance(options, Ets)
    assert (options.bands, options.strict, len(options.quanta)) == (4, 1, 3)
    assert options.priomap == (1,) * 16
    assert found.handles == {
        "realtime": 0x51A0001,
        "interactive": 0x51A0002,
        "batch": 0x51A0003,
        "background": 0x51A0004,
    }
    assert found.sharing == "each class has a queue to itself"


def test_where_nothing_classifies_ets_goes_by_priority():
    options = ets(LINK, CLASSES, MAJOR, classified=False).qdiscs[0].options
    assert isinstance(options, Ets)
    assert [options.priomap[priority] for priority in (6, 4, 2, 0, 1)] == [0, 1, 3, 1, 1]


def test_fq_has_three_bands():
    found = fq(LINK, CLASSES, MAJOR)
    options = found.qdiscs[0].options
    assert isinstance(options, Fq)
    bands = {name: options.priomap[priority] for name, priority in found.handles.items()}
    assert bands == {"realtime": 0, "interactive": 1, "batch": 2, "background": 2}
    assert options.priomap[0] == 1  # what nothing classified
    assert found.labels == {}


def _htb(classes: tuple[LinkClass, ...]) -> Queues:
    return htb(LINK, classes, MAJOR, leaf="bfifo")


def _ets(classes: tuple[LinkClass, ...]) -> Queues:
    return ets(LINK, classes, MAJOR, classified=False)


@given(MANY, st.sampled_from((_htb, _ets, lambda classes: cake(LINK, classes, MAJOR))))
def test_whatever_the_classes_each_has_a_place_under_the_root(classes, engine):
    found = engine(classes)
    (root,) = (each for each in found.qdiscs if each.parent == ROOT)
    assert found.handles.keys() == {each.name for each in classes}
    assert all(each >> 16 == root.handle >> 16 and each & 0xFFFF for each in found.handles.values())
    assert len({each.handle for each in (*found.qdiscs, *found.classes)}) == len(found.qdiscs) + len(found.classes)
    assert found.labels.keys() >= set(found.handles.values())


@given(MANY)
def test_ets_is_one_that_the_kernel_takes(classes):
    options = _ets(classes).qdiscs[0].options
    assert isinstance(options, Ets)
    assert 1 <= options.bands <= 16
    assert options.strict + len(options.quanta) == options.bands
    assert all(band < options.bands for band in options.priomap)
    assert all(each & 0xFFFF <= options.bands for each in _ets(classes).handles.values())
