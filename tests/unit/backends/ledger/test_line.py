# SPDX-License-Identifier: Apache-2.0
"""Who waits for one pool's places in all workers: whose turn it is, who is told, and who is passed by."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ledger.line import PATIENCE_S, Line
from tests.fakes.ledgers import Crew

NOW = 100.0


@pytest.fixture
def crew():
    with Crew(4) as crew:
        yield crew


@pytest.fixture
def lines(crew) -> list[Line]:
    return lines_of(crew)


def lines_of(crew: Crew) -> list[Line]:
    lines = [each.line("pool") for each in crew.workers]
    for each in lines:
        each.shares = [0.0, 0.0, 0.0]
    return lines


def waits(line: Line, rank: int, count: int = 1, since: float = NOW, clients: int = 1) -> None:
    line.announce(rank, count, 10 * count, clients, since)


def is_told(crew: Crew, row: int) -> bool:
    try:
        return os.eventfd_read(crew.supervisor.event_fds[row]) > 0
    except BlockingIOError:
        return False


def test_the_lock_is_taken_once_by_sections_inside_each_other(lines):
    with lines[0] as outer, lines[0] as inner:
        assert outer is inner
    with lines[1]:
        pass


def test_only_others_that_wait_are_others(lines):
    waits(lines[0], 1)
    assert not lines[0].others_wait
    assert lines[1].others_wait
    waits(lines[0], 1, 0)
    assert not lines[1].others_wait


def test_what_waits_elsewhere_counts_by_rank(lines):
    waits(lines[0], 1, 2)
    waits(lines[2], 1, 1)
    waits(lines[3], 2, 4)
    assert lines[0].elsewhere(3) == [(0, 0), (1, 10), (4, 40)]
    assert [lines[0].waiting(rank) for rank in range(3)] == [0, 3, 4]
    assert repr(lines[1]) == "<Line of row 1, [2, 0, 1, 4] waiting>"


def test_a_place_that_came_free_is_offered_to_the_better_rank_in_another_worker(crew, lines):
    waits(lines[0], 2)
    waits(lines[1], 1)
    lines[0].left(2)
    assert lines[0].my_turn(NOW, 1) is None
    assert is_told(crew, 1)
    assert not is_told(crew, 2)
    assert lines[0].my_turn(NOW, 1) is None
    assert not is_told(crew, 1), "it has been told"
    assert lines[1].my_turn(NOW, 1) == 1


def test_who_looked_since_the_last_place_came_free_is_not_asked_again(crew, lines):
    waits(lines[0], 2)
    waits(lines[1], 1)
    lines[0].left(2)
    assert lines[0].my_turn(NOW, 1) is None
    lines[1].pass_on(NOW, 1, free=False)
    assert is_told(crew, 0), "what was offered to the first is offered to the next"
    assert lines[0].my_turn(NOW, 1) == 2
    lines[2].left(0)
    assert lines[0].my_turn(NOW, 1) is None


def test_who_was_offered_nothing_and_sees_nothing_wakes_nobody(crew, lines):
    waits(lines[0], 1)
    waits(lines[1], 1)
    lines[2].left(0)
    lines[0].pass_on(NOW, 1, free=False)
    assert not is_told(crew, 1)
    lines[0].pass_on(NOW, 1, free=True)
    assert is_told(crew, 1)


def test_turns_go_past_a_worker_that_does_not_look_until_it_does(lines):
    waits(lines[0], 2)
    waits(lines[1], 1)
    lines[0].left(2)
    assert lines[0].my_turn(NOW, 1) is None
    assert lines[0].my_turn(NOW + PATIENCE_S, 1) is None
    assert lines[0].my_turn(NOW + 2 * PATIENCE_S, 1) == 2
    lines[0].left(2)
    assert lines[0].my_turn(NOW + 2 * PATIENCE_S, 1) == 2, "it is not waited for again"
    lines[1].pass_on(NOW, 1, free=False)
    lines[0].left(2)
    assert lines[0].my_turn(NOW + 3 * PATIENCE_S, 1) is None


def test_in_one_rank_workers_take_turns_by_their_clients(lines):
    """A worker in which three clients wait has three of four turns beside one in which one does."""
    had = [0, 0]
    waits(lines[0], 1, 50, clients=3)
    waits(lines[1], 1, 50, since=NOW - 50)
    for _ in range(400):
        lines[2].left(0)
        row = 0 if lines[0].my_turn(NOW, 1) is not None else 1
        assert lines[row].my_turn(NOW, 1) == 1
        lines[row].served(1)
        had[row] += 1
    assert had == [300, 100]


def test_who_comes_back_has_saved_up_no_turns(lines):
    waits(lines[0], 1, 9)
    waits(lines[1], 1, 9)
    for _ in range(50):
        lines[2].left(0)
        if lines[0].my_turn(NOW, 1) is not None:
            lines[0].served(1)
        elif lines[1].my_turn(NOW, 1) is not None:
            lines[1].served(1)
    waits(lines[3], 1, 9, since=NOW + 1)
    first = []
    for _ in range(8):
        lines[2].left(0)
        for row in (0, 1, 3):
            if lines[row].my_turn(NOW, 1) is not None:
                lines[row].served(1)
                first.append(row)
                break
    assert first.count(3) <= 3


def test_a_class_passed_over_for_long_has_its_turn_in_another_worker(lines):
    waits(lines[0], 0, 99)
    waits(lines[1], 2)
    had = []
    for _ in range(34):
        lines[2].left(0)
        if lines[0].my_turn(NOW, 1) is None:
            assert lines[1].my_turn(NOW, 1) == 2
            lines[1].served(2)
            had.append(2)
        else:
            lines[0].served(0)
            had.append(0)
    assert had == [0] * 32 + [2, 0]


def test_places_held_by_rank_are_everybodys(lines):
    lines[0].took(1)
    lines[1].took(1)
    assert lines[2].held(1) == 2
    lines[1].left(1)
    assert lines[2].held(1) == 1
    lines[0].holds([1])
    assert (lines[2].held(0), lines[2].held(1)) == (1, 0)


def test_a_gate_that_is_gone_holds_and_awaits_nothing(lines):
    waits(lines[0], 1, 3)
    lines[0].took(1)
    lines[0].part()
    assert not lines[1].others_wait
    assert lines[1].held(1) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["wait", "go", "take", "leave", "clear"]), st.integers(0, 2)),
        max_size=60,
    )
)
def test_any_order_of_events_with_three_places(events):
    """Never a fourth in flight, never a turn for who waits behind, and all sums are what the rows' own records say."""
    with Crew(4) as crew:
        lines, columns = lines_of(crew), [each.column("pool", "endpoint") for each in crew.workers]
        held = [[0] * 3 for _ in range(4)]
        queue = [[0] * 3 for _ in range(4)]
        for row, event, rank in events:
            line, column = lines[row], columns[row]
            if event == "wait":
                queue[row][rank] += 1
                waits(line, rank, queue[row][rank])
            elif event == "go" and queue[row][rank]:
                queue[row][rank] -= 1
                waits(line, rank, queue[row][rank])
            elif event == "leave" and held[row][rank]:
                held[row][rank] -= 1
                column.leave()
                line.left(rank)
            elif event == "clear":
                crew.supervisor.clear_row(row)
                held[row], queue[row] = [0] * 3, [0] * 3
            elif event == "take" and column.total() < 3 and (mine := line.my_turn(NOW, 3)) is not None:
                asked = [other for other in range(4) if any(queue[other])]
                assert row in asked
                line.served(mine)
                queue[row][mine] -= 1
                waits(line, mine, queue[row][mine])
                column.take()
                line.took(mine)
                held[row][mine] += 1
            assert column.total() == sum(map(sum, held)) <= 3
            for each in range(3):
                assert line.waiting(each) == sum(of[each] for of in queue)
                assert line.held(each) == sum(of[each] for of in held)
