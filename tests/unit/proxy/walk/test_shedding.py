# SPDX-License-Identifier: Apache-2.0
"""Work in flight that ends for a higher class: at one gate here, over workers in test_shared_queues.py."""

from __future__ import annotations

from collections import Counter

import pytest

from backends.outcome import Outcome
from proxy.walk.place import Place
from proxy.walk.shedding import Shedding
from tests.fakes.endpoints import pool_of, request_for, traffic_class


class Work:
    """Sheddable places of one gate, and who was told to go."""

    def __init__(self) -> None:
        self.evicted: Counter[str] = Counter()
        self.shedding = Shedding(self.evicted, None)
        self.told: list[str] = []
        self.endpoint = pool_of(9).endpoints[0]

    def place(self, name: str, rank: int, *, sheddable: bool = True) -> Place:
        evict = (lambda: self.told.append(name)) if sheddable else None
        request = request_for(traffic_class(rank), now=0.0, evict=evict)
        place = Place(lambda *_: None, self.endpoint, request, rank, 0.0)
        self.shedding.add(place)
        return place


@pytest.fixture
def work() -> Work:
    return Work()


def test_the_newest_of_the_lowest_class_goes_one_for_each_that_waits(work):
    for name, rank in (("old", 2), ("new", 2), ("higher", 1)):
        work.place(name, rank)
    work.shedding.shed([1, 0, 0])
    assert work.told == ["new"]
    work.shedding.shed([1, 0, 0])
    assert work.told == ["new"], "it is on its way out"
    work.shedding.shed([9, 0, 0])
    assert work.told == ["new", "old", "higher"]
    assert work.evicted == {"rank-2": 2, "rank-1": 1}


def test_what_is_not_sheddable_protected_or_over_stays(work):
    work.place("kept", 2, sheddable=False)
    work.place("protected", 2).protected = True
    gone = work.place("gone", 2)
    work.shedding.discard(gone)
    gone.leave(Outcome.unused())
    work.shedding.shed([5, 0, 0])
    assert work.told == []
    assert repr(work.shedding) == "<Shedding 1 places>"


def test_nobody_goes_for_an_equal(work):
    work.place("stays", 2)
    work.shedding.shed([0, 0, 3])
    assert work.told == []
