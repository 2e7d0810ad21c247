# SPDX-License-Identifier: Apache-2.0
"""Between classes: strict rank, but a share is kept with few places and with many, and the lowest class moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from qos.scheduler import MOST_PASSED_OVER, ClassBounds, ClassQueues

NO_SHARES = (0.0, 0.0, 0.0, 0.0)


def queues(shares: Sequence[float] = NO_SHARES) -> ClassQueues[int]:
    return ClassQueues([ClassBounds(share, 100, 0) for share in shares], max_entries=1000, max_bytes=0)


def wait(queue: ClassQueues[int], rank: int) -> None:
    assert queue.offer(rank, rank=rank, client="client", due=1.0, size=0, leaves=10.0)


def turn(queue: ClassQueues[int], in_flight: Sequence[int] = (), places: int = 1) -> int:
    """The rank that gets it."""
    entry = queue.first(in_flight, places)
    assert entry is not None
    queue.serve(entry, 1.0)
    return entry.item


def backlog(shares: Sequence[float], turns: int, *, waiting: set[int] | None = None) -> list[int]:
    """One place, every class (or those) waiting all the time: the ranks in the order of their turns."""
    queue, ranks = queues(shares), list[int]()
    for rank in range(len(shares)) if waiting is None else waiting:
        wait(queue, rank)
    for _ in range(turns):
        ranks.append(turn(queue))
        wait(queue, ranks[-1])
    return ranks


def test_the_lowest_class_moves_once_in_33_turns() -> None:
    ranks = backlog(NO_SHARES, 330, waiting={0, 3})
    assert [number for number, rank in enumerate(ranks) if rank == 3] == list(range(32, 330, 33))


def test_several_starving_classes_move_one_after_the_other() -> None:
    ranks = backlog(NO_SHARES, 320)
    assert ranks[32:35] == [1, 2, 3]
    assert Counter(ranks) == {0: 320 - 3 * 9, 1: 9, 2: 9, 3: 9}


def test_more_classes_than_the_floor_has_turns_for_move_one_after_the_other() -> None:
    ranks = backlog([0.0] * 50, 500)[100:]
    assert {len(set(ranks[start : start + 50])) for start in range(350)} == {50}


def test_half_of_one_place_is_every_second_turn() -> None:
    assert backlog((0.0, 0.0, 0.5, 0.0), 8, waiting={0, 2}) == [0, 2, 0, 2, 0, 2, 0, 2]


def test_a_third_and_a_quarter_of_one_place_are_kept_side_by_side() -> None:
    # The first turns only earn.
    ranks = backlog((0.0, 1 / 3, 0.25, 0.0), 12 * 101, waiting={0, 1, 2})[12:]
    assert Counter(ranks) == {0: 500, 1: 400, 2: 300}


def test_a_share_waits_for_nobody_once_its_whole_places_are_not_all_held() -> None:
    queue = queues((0.0, 0.0, 0.25, 0.0))
    wait(queue, 0)
    wait(queue, 2)
    for in_flight, places, expected in (
        ((7, 0, 1, 0), 8, 2),
        ((6, 0, 2, 0), 8, 0),
        ((8, 0), 8, 2),
        ((2, 0, 0, 0), 3, 0),
    ):
        entry = queue.first(in_flight, places)
        assert entry is not None
        assert entry.item == expected


def test_a_fraction_of_a_place_is_not_collected_on_top_of_places_held() -> None:
    queue = queues((0.0, 0.5))
    wait(queue, 1)
    for _ in range(20):
        wait(queue, 0)
        assert turn(queue, (1, 2), 3) == 0
    wait(queue, 0)
    assert turn(queue, (1, 1), 3) == 1


def test_what_a_share_earned_while_it_was_kept_by_places_held_is_bounded() -> None:
    queue = queues((0.0, 0.5))
    for rank in (0, 1):
        for _ in range(99):
            wait(queue, rank)
    for _ in range(30):
        assert turn(queue, (1, 2), 4) == 0
    assert [turn(queue, (0, 0), 1) for _ in range(9)] == [1, 1, 1, 0, 1, 0, 1, 0, 1]


def test_a_share_of_what_does_not_wait_holds_nobody_up() -> None:
    assert backlog((0.0, 0.9, 0.0, 0.0), 30, waiting={0, 3}) == [0] * 30


def test_time_spent_alone_saves_up_no_turns() -> None:
    queue = queues((0.0, 0.5))
    for _ in range(100):
        wait(queue, 1)
    for _ in range(50):
        turn(queue)
    for _ in range(10):
        wait(queue, 0)
    assert [turn(queue) for _ in range(6)] == [0, 1, 0, 1, 0, 1]


def test_long_requests_of_the_lowest_class_do_not_collect_all_places() -> None:
    """A request of the lowest class takes 10 s, one of the highest 50 ms; eight places, both always wait."""
    queue, places, now = queues((0.0, 0.0)), 8, 0.0
    running: list[tuple[float, int]] = []
    most_held, turns = 0, Counter[int]()
    while now < 60:
        held = [sum(rank == each for _, rank in running) for each in (0, 1)]
        most_held = max(most_held, held[1])
        if len(running) < places:
            for rank in (0, 1):
                if not queue.depth(rank):
                    wait(queue, rank)
            rank = turn(queue, held, places)
            turns[rank] += 1
            running.append((now + (0.05, 10.0)[rank], rank))
        else:
            running.sort()
            now = running.pop(0)[0]
    assert most_held == 1
    assert turns[1] >= 5
    assert turns[0] >= 0.99 * 7 * 60 / 0.05


@given(
    shares=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    waiting=st.sets(st.integers(0, 5), min_size=1),
    turns=st.integers(1, 300),
)
def test_a_class_that_waits_gets_its_share_of_the_turns(shares: list[int], waiting: set[int], turns: int) -> None:
    assume(sum(shares) <= 100)
    ranks = waiting & set(range(len(shares)))
    assume(ranks)
    counts = Counter(backlog([share / 100 for share in shares], turns, waiting=ranks))
    # What the floor gives to classes without a share, the others cannot have.
    floor = sum(not shares[rank] for rank in ranks) * (turns // (MOST_PASSED_OVER + 1) + 1)
    for rank in ranks:
        assert counts[rank] >= shares[rank] / 100 * turns - len(shares) - floor


@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_no_class_waits_for_more_than_a_bounded_number_of_turns(shares: list[float]) -> None:
    """Whatever the shares, even where they add up to more than there is."""
    ranks = backlog(shares, 200)
    for rank in range(len(shares)):
        turns = [-1, *(number for number, each in enumerate(ranks) if each == rank), 200]
        gaps = [later - earlier for earlier, later in pairwise(turns)]
        assert max(gaps) <= MOST_PASSED_OVER + len(shares)


@given(
    share=st.integers(1, 99),
    places=st.integers(1, 12),
    services=st.lists(st.integers(1, 9), min_size=20, max_size=80),
)
def test_a_class_that_waits_holds_the_whole_places_of_its_share(share: int, places: int, services: list[int]) -> None:
    queue, now, running = queues((0.0, share / 100)), 0, list[tuple[int, int]]()
    for service in services:
        for rank in (0, 1):
            if not queue.depth(rank):
                wait(queue, rank)
        held = [sum(rank == each for _, rank in running) for each in (0, 1)]
        rank = turn(queue, held, places)
        running.append((now + service, rank))
        if len(running) == places:
            assert sum(rank == 1 for _, rank in running) >= share * places // 100
            running.sort()
            now = running.pop(0)[0]
