# SPDX-License-Identifier: Apache-2.0
"""A gate's queues keep their bounds and lose nobody, held against a model that is too simple to be wrong."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from qos.scheduler import MOST_PASSED_OVER, ClassBounds, ClassQueues, Entry, Turns, took_turn

NO_SHARES = (0.0, 0.0, 0.0, 0.0)


def queues(shares: Sequence[float] = NO_SHARES, *, most: int = 4, most_bytes: int = 100) -> ClassQueues[str]:
    """A gate's queues; what binds is the bound of all classes together."""
    bounds = [ClassBounds(share, most, most_bytes) for share in shares]
    return ClassQueues(bounds, max_entries=most, max_bytes=most_bytes)


@pytest.fixture
def queue() -> ClassQueues[str]:
    return queues()


def wait(
    queue: ClassQueues[str], item: str, *, rank: int = 0, client: str = "client", size: int = 1, leaves: float = 10.0
) -> Entry[str]:
    entry = queue.offer(item, rank=rank, client=client, due=1.0, size=size, leaves=leaves)
    assert entry is not None
    return entry


def turn(queue: ClassQueues[str], in_flight: Sequence[int] = (), places: int = 1) -> str | None:
    entry = queue.first(in_flight, places)
    if entry is None:
        return None
    queue.serve(entry, 1.0)
    return entry.item


def served(queue: ClassQueues[str]) -> list[str]:
    items = []
    while (item := turn(queue)) is not None:
        items.append(item)
    return items


def test_the_higher_class_first_and_inside_a_class_first_come_first_served(queue: ClassQueues[str]) -> None:
    for item, rank in (("batch 1", 2), ("realtime 1", 0), ("batch 2", 2), ("realtime 2", 0)):
        wait(queue, item, rank=rank)
    assert [entry.item for entry in queue.entries()] == ["realtime 1", "realtime 2", "batch 1", "batch 2"]
    assert served(queue) == ["realtime 1", "realtime 2", "batch 1", "batch 2"]


def test_nothing_waits(queue: ClassQueues[str]) -> None:
    assert queue.first((), 1) is None
    assert queue.next_expiry() is None
    assert queue.expire(now=1e9) == []
    assert (queue.depth(7), queue.bytes_of(7)) == (0, 0)
    assert repr(queue) == "<ClassQueues empty, 0 bytes>"


def test_the_number_of_entries_is_bounded(queue: ClassQueues[str]) -> None:
    for n in range(4):
        wait(queue, str(n), rank=n)
    assert queue.offer("one too many", rank=0, client="client", due=1.0, size=0, leaves=10.0) is None
    assert turn(queue) is not None
    wait(queue, "now there is room")
    assert repr(queue) == "<ClassQueues rank 0: 1, rank 1: 1, rank 2: 1, rank 3: 1, 4 bytes>"


def test_the_bytes_are_bounded(queue: ClassQueues[str]) -> None:
    large = wait(queue, "large", size=60)
    assert queue.offer("does not fit", rank=0, client="client", due=1.0, size=41, leaves=10.0) is None
    wait(queue, "just fits", rank=1, size=40)
    assert (queue.bytes, queue.bytes_of(0), queue.bytes_of(1)) == (100, 60, 40)
    queue.withdraw(large)
    assert (queue.bytes, queue.bytes_of(0)) == (40, 0)


def test_the_newest_of_the_lowest_class_makes_room(queue: ClassQueues[str]) -> None:
    old, newer, other = (wait(queue, item, rank=3, client=item) for item in ("old", "newer", "other"))
    middle = wait(queue, "middle", rank=2)
    queue.withdraw(newer)
    newest = wait(queue, "newest", rank=3, client="old")
    assert queue.room_for(1, 1) == [newest]
    assert queue.room_for(2, 1) == [newest]
    assert queue.room_for(3, 1) is None
    assert queue.room_for(0, 100) == [newest, other, old, middle]
    assert queue.room_for(0, 101) is None
    queue.withdraw(newest)
    assert queue.room_for(3, 1) == []


def test_an_empty_body_makes_no_room_for_bytes(queue: ClassQueues[str]) -> None:
    large = wait(queue, "large", rank=3, size=100)
    wait(queue, "empty", rank=3, size=0)
    assert queue.room_for(0, 50) == [large]


def test_a_class_at_its_own_bound_displaces_nobody() -> None:
    bounds = [ClassBounds(0.0, 1, 10), ClassBounds(0.0, 9, 90)]
    queue: ClassQueues[str] = ClassQueues(bounds, max_entries=9, max_bytes=90)
    wait(queue, "lower", rank=1)
    assert queue.room_for(0, 11) is None
    wait(queue, "realtime")
    assert queue.room_for(0, 1) is None
    assert queue.offer("too many", rank=0, client="client", due=1.0, size=1, leaves=10.0) is None


def test_a_grown_entry_keeps_its_place_and_the_bound_holds_for_newcomers(queue: ClassQueues[str]) -> None:
    growing = wait(queue, "growing")
    queue.resize(growing, 120)
    assert queue.room_for(0, 0) is None
    assert queue.room_for(1, 0) is None
    assert turn(queue) == "growing"
    assert (queue.bytes, queue.bytes_of(0)) == (0, 0)
    queue.resize(growing, 130)
    assert (queue.bytes, queue.bytes_of(0)) == (0, 0)


def test_entries_expire_in_the_order_of_their_instants(queue: ClassQueues[str]) -> None:
    wait(queue, "late", leaves=3.0)
    wait(queue, "early", rank=1, leaves=1.0)
    wait(queue, "between", leaves=2.0)
    assert queue.next_expiry() == 1.0
    assert [entry.item for entry in queue.expire(now=2.0)] == ["early", "between"]
    assert served(queue) == ["late"]


def test_who_was_served_or_withdrew_does_not_expire_and_gets_no_second_turn(queue: ClassQueues[str]) -> None:
    first, withdrawn = wait(queue, "served", leaves=1.0), wait(queue, "withdrawn", leaves=2.0)
    wait(queue, "patient", leaves=3.0)
    queue.serve(first, 1.0)
    queue.withdraw(withdrawn)
    for gone in (first, withdrawn):
        queue.withdraw(gone)
        queue.serve(gone, 1.0)
    assert queue.next_expiry() == 3.0
    assert [entry.item for entry in queue.expire(now=9.0)] == ["patient"]


def test_clients_of_a_class_take_turns_by_their_backend_time(queue: ClassQueues[str]) -> None:
    for item in ("a 1", "a 2", "b 1", "b 2"):
        wait(queue, item, client=item[0])
    assert turn(queue) == "a 1"
    queue.settle(0, "a", -0.9)
    assert [turn(queue), turn(queue)] == ["b 1", "a 2"]


def test_a_rank_that_is_no_more_is_settled_in_peace(queue: ClassQueues[str]) -> None:
    queue.settle(99, "client", 1.0)
    assert served(queue) == []


def test_new_ranks_hold_for_what_waits_and_what_left_stays_away(queue: ClassQueues[str]) -> None:
    gone = wait(queue, "gone")
    queue.withdraw(gone)
    for name, rank in (("a", 0), ("b", 1), ("c", 1), ("d", 3)):
        wait(queue, name, rank=rank)
    queue.use_classes([ClassBounds(0.0, 1, 1)] * 3, lambda entry: {"a": 2, "b": 2, "c": 0, "d": 2}[entry.item])
    assert [queue.depth(rank) for rank in range(4)] == [1, 0, 3, 0]
    assert (len(queue), queue.bytes, queue.bytes_of(2)) == (4, 4, 3)
    assert queue.room_for(2, 0) is None
    assert served(queue) == ["c", "a", "b", "d"]
    assert queue.expire(now=10.0) == []


def test_after_a_reload_the_newest_still_makes_room() -> None:
    queue = queues(most=3)
    newer = [wait(queue, "first", rank=2), wait(queue, "second", rank=1), wait(queue, "third", rank=2)][::-1]
    queue.use_classes([ClassBounds(0.0, 3, 100)] * 2, lambda _: 1)
    assert queue.room_for(0, 98) == newer[:1]
    assert queue.room_for(0, 100) == newer


def test_after_a_reload_a_client_still_owes_what_it_used() -> None:
    queue = queues(most=9)
    for item in ("a 1", "a 2", "b 1", "b 2", "b 3", "b 4"):
        wait(queue, item, client=item[0])
    first = queue.first((), 1)
    assert first is not None
    queue.serve(first, 2.5)
    queue.use_classes([ClassBounds(0.0, 9, 100)], lambda _: 0)
    assert served(queue) == ["b 1", "b 2", "b 3", "a 2", "b 4"]


@given(
    offers=st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 9)), min_size=9, max_size=30),
    costs=st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0]), min_size=30, max_size=30),
    turns=st.integers(0, 10),
    ranks=st.permutations(range(3)),
)
def test_a_reload_keeps_the_order_inside_a_class(
    offers: list[tuple[int, str, int]], costs: list[float], turns: int, ranks: list[int]
) -> None:
    queue: ClassQueues[int] = ClassQueues([ClassBounds(0.0, 99, 99)] * 3, max_entries=99, max_bytes=99)
    for item, (rank, client, due) in enumerate(offers):
        queue.offer(item, rank=rank, client=client, due=due, size=1, leaves=1.0)
    for _ in range(min(turns, len(offers))):
        entry = queue.first((), 1)
        assert entry is not None
        queue.serve(entry, costs[entry.item])
    reloaded = copy.deepcopy(queue)
    reloaded.use_classes([ClassBounds(0.0, 0, 0)] * 3, lambda entry: ranks[entry.rank])

    def by_class(queue: ClassQueues[int]) -> dict[int, list[int]]:
        order: dict[int, list[int]] = defaultdict(list)
        while (entry := queue.first((), 1)) is not None:
            queue.serve(entry, costs[entry.item])
            order[offers[entry.item][0]].append(entry.item)
        return order

    assert by_class(reloaded) == by_class(queue)


MOST, MOST_BYTES = 6, 60
BOUNDS = [ClassBounds(0.0, 3, 40), ClassBounds(0.4, 5, 60), ClassBounds(0.0, 6, 30), ClassBounds(0.2, 6, 60)]


@dataclass(eq=False)
class Modelled:
    entry: Entry[int]
    rank: int
    client: str
    due: int
    size: int
    leaves: float
    arrival: int


class AgainstModel(RuleBasedStateMachine):
    """A list sorted on demand is the model. Whose turn it is between classes and clients has tests of its own."""

    entries = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.queue: ClassQueues[int] = ClassQueues(BOUNDS, max_entries=MOST, max_bytes=MOST_BYTES)
        self.model: list[Modelled] = []
        self.left: list[int] = []
        self.now = 0.0
        self.arrivals = 0

    def of(self, rank: int) -> list[Modelled]:
        return [each for each in self.model if each.rank == rank]

    def fits(self, size: int, without: Sequence[Modelled] = ()) -> bool:
        there = [each for each in self.model if each not in without]
        return len(there) < MOST and sum(each.size for each in there) + size <= MOST_BYTES

    def fits_its_class(self, rank: int, size: int) -> bool:
        bounds, there = BOUNDS[rank], self.of(rank)
        return len(there) < bounds.most_entries and sum(each.size for each in there) + size <= bounds.most_bytes

    def gone(self, modelled: Modelled) -> None:
        self.model.remove(modelled)
        self.left.append(modelled.arrival)

    @rule(
        target=entries,
        rank=st.integers(0, 3),
        client=st.sampled_from("abc"),
        due=st.integers(0, 3),
        size=st.integers(0, 30),
        leaves_in=st.integers(0, 10),
    )
    def offer(self, rank: int, client: str, due: int, size: int, leaves_in: int) -> Modelled | None:
        self.arrivals += 1
        leaves = self.now + leaves_in
        entry = self.queue.offer(self.arrivals, rank=rank, client=client, due=due, size=size, leaves=leaves)
        assert (entry is not None) == (self.fits_its_class(rank, size) and self.fits(size))
        if entry is None:
            return None
        modelled = Modelled(entry, rank, client, due, size, leaves, self.arrivals)
        self.model.append(modelled)
        return modelled

    @rule(rank=st.integers(0, 3), size=st.integers(0, 70))
    def displace(self, rank: int, size: int) -> None:
        lower = sorted((each for each in self.model if each.rank > rank), key=lambda each: (-each.rank, -each.arrival))
        displaced = self.queue.room_for(rank, size)
        if not self.fits_its_class(rank, size) or not self.fits(size, lower):
            assert displaced is None
            return
        assert displaced is not None
        victims = [each for each in lower if each.entry in displaced]
        assert [each.entry for each in victims] == displaced
        assert self.fits(size, victims)
        assert not victims or not self.fits(size, victims[:-1])
        # Nobody older or higher leaves while somebody stays who would have made room, too.
        spared = [each for each in lower[: lower.index(victims[-1])] if each not in victims] if victims else []
        assert all(each.size == 0 for each in spared)
        for each in victims:
            self.queue.withdraw(each.entry)
            self.gone(each)

    @rule(in_flight=st.lists(st.integers(0, 4), max_size=4), places=st.integers(1, 8), cost_s=st.floats(-1, 3))
    def serve(self, in_flight: list[int], places: int, cost_s: float) -> None:
        entry = self.queue.first(in_flight, places)
        assert (entry is None) == (not self.model)
        if entry is None:
            return
        modelled = next(each for each in self.model if each.entry is entry)
        rivals = [each for each in self.of(modelled.rank) if each.client == modelled.client]
        assert modelled is min(rivals, key=lambda each: (each.due, each.arrival))
        self.queue.serve(entry, cost_s)
        self.gone(modelled)

    @rule(rank=st.integers(0, 4), client=st.sampled_from("abc"), difference_s=st.floats(-3, 3))
    def settle(self, rank: int, client: str, difference_s: float) -> None:
        self.queue.settle(rank, client, difference_s)

    @rule(modelled=consumes(entries))
    def withdraw(self, modelled: Modelled | None) -> None:
        if modelled is not None:
            self.queue.withdraw(modelled.entry)
            if modelled in self.model:
                self.gone(modelled)

    @rule(modelled=entries, by=st.integers(0, 40))
    def grow(self, modelled: Modelled | None, by: int) -> None:
        if modelled is not None and modelled in self.model:
            modelled.size += by
            self.queue.resize(modelled.entry, modelled.size)

    @rule(seconds=st.integers(0, 5))
    def expire(self, seconds: int) -> None:
        self.now += seconds
        due = sorted((each.leaves, each.arrival) for each in self.model if each.leaves <= self.now)
        assert [(entry.leaves, entry.item) for entry in self.queue.expire(now=self.now)] == due
        for each in [each for each in self.model if each.leaves <= self.now]:
            self.gone(each)

    @rule(ranks=st.permutations(range(4)))
    def reload(self, ranks: list[int]) -> None:
        self.queue.use_classes(BOUNDS, lambda entry: ranks[entry.rank])
        for each in self.model:
            each.rank = ranks[each.rank]

    @invariant()
    def agree(self) -> None:
        assert len(set(self.left)) == len(self.left)
        assert len(self.queue) == len(self.model)
        assert sorted(entry.item for entry in self.queue.entries()) == sorted(each.arrival for each in self.model)
        assert self.queue.bytes == sum(each.size for each in self.model)
        assert self.queue.next_expiry() == min((each.leaves for each in self.model), default=None)
        for rank in range(5):
            assert self.queue.depth(rank) == len(self.of(rank))
            assert self.queue.bytes_of(rank) == sum(each.size for each in self.of(rank))

    def teardown(self) -> None:
        while (entry := self.queue.first((), 1)) is not None:
            self.queue.serve(entry, 1.0)
            self.left.append(entry.item)
        assert len(self.queue) == self.queue.bytes == 0
        assert len(set(self.left)) == len(self.left)


TestAgainstModel = AgainstModel.TestCase


def test_the_dead_do_not_pile_up() -> None:
    queue = queues()
    for n in range(1000):
        wait(queue, str(n), leaves=1e6 - n)
        assert turn(queue) == str(n)
        assert len(queue._expiries) <= 66


def test_in_a_full_class_the_client_with_the_most_makes_room_for_one_with_less() -> None:
    queue = queues(most=5)
    most = [wait(queue, f"most {n}", client="most") for n in range(3)]
    wait(queue, "other", client="other")
    wait(queue, "higher", client="new", size=50)
    assert queue.room_for(0, 1) is None
    assert queue.room_for(0, 1, "most") is None
    assert queue.room_for(0, 1, "new") == most[:1:-1]
    assert queue.room_for(0, 99, "third") is None  # three bytes of it are too few
    queue.withdraw(most[2])
    wait(queue, "new 2", client="new", size=40)
    assert queue.room_for(0, 1, "new") is None
    assert [entry.item for entry in queue.room_for(0, 8, "third") or []] == ["most 1"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, MOST_PASSED_OVER + 1), st.floats(0, 6))
def test_a_turn_that_no_other_waits_for_is_a_turn_like_any(shares: list[float], passed: int, credit: float) -> None:
    turns = [Turns(shares[0], passed, credit), *map(Turns, shares[1:])]
    alone = copy.copy(turns[0])
    alone.taken_alone(len(shares))
    took_turn(turns, [True] + [False] * len(shares[1:]), 0)
    assert (alone.passed_over, alone.credit) == (turns[0].passed_over, turns[0].credit)
