# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from backends.choosing.zones import nearest_first

ZONES = ("edge", "cloud")


@dataclass(eq=False)
class Site:
    """An endpoint as the choice of a zone sees it."""

    zone: str | None
    in_flight: int = 0
    slots: int = 2
    expected: float | None = 0.1
    usual: float | None = None
    """Not faded; None: the same."""
    old: bool = False

    @property
    def busy(self) -> int:
        return self.in_flight

    def room(self, now: float) -> int:
        return self.slots

    def usual_s(self, now: float) -> float | None:
        return self.expected if self.usual is None else self.usual

    def expected_s(self, now: float) -> float | None:
        return self.expected

    def forgotten(self, now: float) -> bool:
        return self.old and self.in_flight == 0


def chosen(*sites: Site, waiting: int = 1, zones: tuple[str, ...] = ZONES) -> list[Site]:
    return nearest_first(sites, zones, now=0.0, waiting=waiting)


def test_the_nearest_zone_goes_first():
    edge, full, cloud = Site("edge"), Site("edge", in_flight=2), Site("cloud", expected=0.11)
    assert chosen(cloud, full, edge) == [edge]


def test_a_farther_zone_that_answers_sooner_in_spite_of_the_way_is_used():
    edge, cloud = Site("edge", in_flight=1, expected=3.0), Site("cloud", expected=0.2)
    assert chosen(edge, cloud) == [cloud]


def test_what_is_known_of_a_farther_zone_does_not_fade_while_the_nearest_is_free():
    edge, cloud = Site("edge", expected=0.1), Site("cloud", expected=0.001, usual=0.3)
    assert chosen(edge, cloud) == [edge]
    edge.in_flight = 2
    assert chosen(edge, cloud) == [cloud]


def test_a_full_zone_is_waited_for_where_that_is_still_sooner():
    edge, cloud = Site("edge", in_flight=2, expected=0.1), Site("cloud", expected=0.3)
    assert chosen(edge, cloud, waiting=1) == []  # 100 ms of waiting and answering over 2 places: 150 ms
    assert chosen(edge, cloud, waiting=3) == []  # 250 ms
    assert chosen(edge, cloud, waiting=5) == [cloud]  # 350 ms


def test_a_hung_zone_spills():
    edge, cloud = Site("edge", in_flight=2, expected=None), Site("cloud", expected=0.3)
    assert chosen(edge, cloud) == []
    edge.expected = 1.0  # nothing came for a second
    assert chosen(edge, cloud) == [cloud]


def test_one_request_goes_back_to_a_zone_that_was_left_long_ago():
    back, slow, cloud = Site("edge", usual=0.9, old=True), Site("edge", usual=0.9), Site("cloud", expected=0.3)
    assert chosen(slow, cloud) == [cloud]
    assert chosen(slow, back, cloud) == [back]
    back.in_flight = 1  # it is on its way
    assert chosen(slow, back, cloud) == [cloud]
    cloud.old = True
    assert chosen(slow, back, cloud) == [cloud]


def test_nobody_waits_for_a_zone_that_is_not_there():
    cloud = Site("cloud", expected=60.0)
    assert chosen(cloud) == [cloud]
    assert chosen() == []


def test_endpoints_without_a_known_zone_come_last():
    cloud, lost, stray = Site("cloud"), Site(None, expected=0.01), Site("moon", expected=0.01)
    assert chosen(lost, cloud, zones=("edge", "cloud")) == [lost]  # it is faster
    lost.expected = stray.expected = 0.1
    assert chosen(lost, stray, cloud) == [cloud]
    cloud.in_flight = 2
    assert chosen(lost, stray, cloud) == [lost, stray]


def test_an_unknown_zone_is_tried_only_where_the_nearest_is_full_and_by_one_request():
    edge, cloud = Site("edge", expected=9.0), Site("cloud", expected=None)
    assert chosen(edge, cloud) == [edge]
    edge.in_flight = 2
    assert chosen(edge, cloud) == [cloud]
    cloud.in_flight = 1
    assert chosen(edge, cloud) == []


sites = st.lists(
    st.builds(
        Site,
        zone=st.sampled_from([None, "edge", "cloud", "moon"]),
        in_flight=st.integers(0, 3),
        slots=st.integers(1, 3),
        expected=st.one_of(st.none(), st.floats(1e-3, 10.0)),
    ),
    max_size=8,
)


@given(sites, st.integers(0, 20))
def test_only_free_ones_of_one_zone_are_chosen(present, waiting):
    found = chosen(*present, waiting=waiting)
    assert all(each.in_flight < each.slots for each in found)
    assert len({each.zone if each.zone in ZONES else None for each in found}) <= 1


@given(sites, st.integers(0, 20))
def test_waiting_is_only_for_the_nearest_zone_that_is_there(present, waiting):
    if chosen(*present, waiting=waiting):
        return
    order = {"edge": 0, "cloud": 1}
    nearest = min((order.get(each.zone or "", 2) for each in present), default=None)
    assert all(each.in_flight >= each.slots for each in present if order.get(each.zone or "", 2) == nearest)


@given(sites, st.integers(1, 20))
def test_more_who_wait_never_bring_it_back_to_the_nearest(present, waiting):
    """Once a farther zone is chosen, a longer queue does not change that."""
    before = chosen(*present, waiting=waiting)
    nearest = chosen(*present, waiting=0)
    if before and before != nearest:
        assert chosen(*present, waiting=waiting + 1) != []
