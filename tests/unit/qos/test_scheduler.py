# SPDX-License-Identifier: Apache-2.0
"""The ranked queue against a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from qos.scheduler import Entry, RankedQueue

Item = TypeVar("Item")


@pytest.fixture
def queue() -> RankedQueue[str]:
    return RankedQueue(max_entries=4, max_bytes=100)


def offer(queue: RankedQueue[str], item: str, *, rank: int = 0, size: int = 1, leaves: float = 10.0) -> Entry[str]:
    entry = queue.offer(item, rank=rank, size=size, leaves=leaves)
    assert entry is not None
    return entry


def serve(queue: RankedQueue[Item]) -> Entry[Item] | None:
    entry = queue.first()
    if entry is not None:
        queue.withdraw(entry)
    return entry


def served(queue: RankedQueue[str]) -> list[str]:
    items = []
    while entry := serve(queue):
        items.append(entry.item)
    return items


def test_lower_rank_first_and_inside_a_rank_first_come_first_served(queue: RankedQueue[str]) -> None:
    for item, rank in (("batch 1", 2), ("realtime 1", 0), ("batch 2", 2), ("realtime 2", 0)):
        offer(queue, item, rank=rank)
    assert served(queue) == ["realtime 1", "realtime 2", "batch 1", "batch 2"]


def test_nothing_waits(queue: RankedQueue[str]) -> None:
    assert queue.first() is None
    assert queue.next_expiry() is None
    assert queue.expire(now=1e9) == []
    assert queue.depth(7) == 0
    assert repr(queue) == "<RankedQueue empty, 0 bytes>"


def test_the_number_of_entries_is_bounded(queue: RankedQueue[str]) -> None:
    for n in range(4):
        offer(queue, str(n), rank=n)
    assert queue.offer("one too many", rank=0, size=0, leaves=10.0) is None
    assert serve(queue) is not None
    offer(queue, "now there is room")
    assert repr(queue) == "<RankedQueue rank 0: 1, rank 1: 1, rank 2: 1, rank 3: 1, 4 bytes>"


def test_the_bytes_are_bounded(queue: RankedQueue[str]) -> None:
    large = offer(queue, "large", size=60)
    assert queue.offer("does not fit", rank=0, size=41, leaves=10.0) is None
    offer(queue, "just fits", size=40)
    assert queue.bytes == 100
    queue.withdraw(large)
    assert queue.bytes == 40


def test_a_grown_entry_keeps_its_place_and_the_bound_holds_for_newcomers(queue: RankedQueue[str]) -> None:
    growing = offer(queue, "growing")
    queue.resize(growing, 120)
    assert queue.offer("newcomer", rank=0, size=0, leaves=10.0) is None
    assert serve(queue) is growing
    assert queue.bytes == 0


def test_an_entry_that_left_does_not_grow(queue: RankedQueue[str]) -> None:
    gone = offer(queue, "gone")
    assert serve(queue) is gone
    queue.resize(gone, 120)
    assert queue.bytes == 0


def test_entries_expire_in_the_order_of_their_instants(queue: RankedQueue[str]) -> None:
    offer(queue, "late", leaves=3.0)
    offer(queue, "early", rank=1, leaves=1.0)
    offer(queue, "between", leaves=2.0)
    assert queue.next_expiry() == 1.0
    assert [entry.item for entry in queue.expire(now=2.0)] == ["early", "between"]
    assert served(queue) == ["late"]


def test_who_was_served_or_withdrew_does_not_expire(queue: RankedQueue[str]) -> None:
    offer(queue, "served", leaves=1.0)
    withdrawn = offer(queue, "withdrawn", leaves=2.0)
    offer(queue, "patient", leaves=3.0)
    serve(queue)
    queue.withdraw(withdrawn)
    queue.withdraw(withdrawn)
    assert queue.next_expiry() == 3.0
    assert [entry.item for entry in queue.expire(now=9.0)] == ["patient"]


def test_new_ranks_hold_for_what_waits_and_what_left_stays_away(queue: RankedQueue[str]) -> None:
    entries = {name: queue.offer(name, rank=rank, size=1, leaves=9.0) for name, rank in (("a", 0), ("b", 1), ("c", 1))}
    gone = queue.offer("gone", rank=0, size=1, leaves=9.0)
    assert gone is not None
    queue.withdraw(gone)
    queue.rank_again(lambda entry: {"a": 2, "b": 2, "c": 0}[entry.item])
    assert [queue.depth(rank) for rank in range(4)] == [1, 0, 2, 0]
    assert (len(queue), queue.bytes) == (3, 3)
    order = []
    while (entry := queue.first()) is not None:
        order.append(entry.item)
        assert entry is entries[entry.item]
        queue.withdraw(entry)
    assert order == ["c", "a", "b"]
    assert queue.expire(now=10.0) == []


def test_the_dead_do_not_pile_up() -> None:
    queue: RankedQueue[int] = RankedQueue(max_entries=4, max_bytes=100)
    for n in range(1000):
        queue.offer(n, rank=0, size=1, leaves=1e6 - n)
        serve(queue)
        assert len(queue._expiries) <= 66


@dataclass(eq=False)
class Modelled:
    entry: Entry[int]
    rank: int
    size: int
    leaves: float
    order: int


class AgainstModel(RuleBasedStateMachine):
    """A list sorted on demand is the model."""

    entries = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.queue: RankedQueue[int] = RankedQueue(max_entries=5, max_bytes=50)
        self.model: list[Modelled] = []
        self.now = 0.0
        self.order = 0

    @rule(target=entries, rank=st.integers(0, 3), size=st.integers(0, 30), wait=st.integers(0, 10))
    def offer(self, rank: int, size: int, wait: int) -> Modelled | None:
        self.order += 1
        entry = self.queue.offer(self.order, rank=rank, size=size, leaves=self.now + wait)
        fits = len(self.model) < 5 and sum(each.size for each in self.model) + size <= 50
        assert (entry is not None) == fits
        if entry is None:
            return None
        modelled = Modelled(entry, rank, size, self.now + wait, self.order)
        self.model.append(modelled)
        return modelled

    @rule()
    def serve(self) -> None:
        entry = serve(self.queue)
        first = min(self.model, key=lambda each: (each.rank, each.order), default=None)
        assert (entry.item if entry else None) == (first.order if first else None)
        if first is not None:
            self.model.remove(first)

    @rule(modelled=consumes(entries))
    def withdraw(self, modelled: Modelled | None) -> None:
        if modelled is not None:
            self.queue.withdraw(modelled.entry)
            self.model = [each for each in self.model if each is not modelled]

    @rule(modelled=entries, by=st.integers(0, 40))
    def grow(self, modelled: Modelled | None, by: int) -> None:
        if modelled is not None and modelled in self.model:
            modelled.size += by
            self.queue.resize(modelled.entry, modelled.size)

    @rule(seconds=st.integers(0, 5))
    def expire(self, seconds: int) -> None:
        self.now += seconds
        due = sorted((each.leaves, each.order) for each in self.model if each.leaves <= self.now)
        assert [(entry.leaves, entry.item) for entry in self.queue.expire(now=self.now)] == due
        self.model = [each for each in self.model if each.leaves > self.now]

    @invariant()
    def agree(self) -> None:
        assert len(self.queue) == len(self.model)
        assert self.queue.bytes == sum(each.size for each in self.model)
        assert self.queue.next_expiry() == min((each.leaves for each in self.model), default=None)
        for rank in range(5):
            assert self.queue.depth(rank) == sum(each.rank == rank for each in self.model)


TestAgainstModel = AgainstModel.TestCase
