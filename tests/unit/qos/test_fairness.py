# SPDX-License-Identifier: Apache-2.0
"""Clients of one class get equal backend time, whatever they ask for; each one's most urgent request is its first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations, count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qos.fairness import LEAST_TURN_S, MOST_DEBT_TURNS, MOST_REMEMBERED, Entry, FairQueue

ARRIVALS = count()


@pytest.fixture
def queue() -> FairQueue[str]:
    return FairQueue()


def wait(queue: FairQueue[str], client: str, *, due: float = 1.0, item: str = "") -> Entry[str]:
    entry = Entry(item=item or client, rank=0, client=client, due=due, size=1, leaves=9.0, arrival=next(ARRIVALS))
    queue.add(entry)
    return entry


def turn(queue: FairQueue[str], cost_s: float = 1.0) -> str | None:
    entry = queue.first()
    if entry is None:
        return None
    queue.serve(entry, cost_s)
    return entry.item


def turns(queue: FairQueue[str], number: int, cost_s: float = 1.0) -> list[str | None]:
    return [turn(queue, cost_s) for _ in range(number)]


def test_nothing_waits(queue: FairQueue[str]) -> None:
    assert queue.first() is None
    assert list(queue) == []
    assert queue.debt_s("nobody") == 0
    assert repr(queue) == "<FairQueue 0 of 0 clients, 0 more remembered>"


def test_of_one_client_the_earliest_due_is_first_and_equals_by_arrival(queue: FairQueue[str]) -> None:
    for item, due in (("late", 3.0), ("early", 1.0), ("late too", 3.0), ("between", 2.0)):
        wait(queue, "a", item=item, due=due)
    assert [entry.item for entry in queue] == ["early", "between", "late", "late too"]
    assert turns(queue, 5) == ["early", "between", "late", "late too", None]


def test_an_early_due_does_not_buy_another_clients_turn(queue: FairQueue[str]) -> None:
    for _ in range(3):
        wait(queue, "patient", due=100.0)
    for _ in range(3):
        wait(queue, "pressing", due=0.0)
    assert turns(queue, 6) == ["patient", "pressing"] * 3


def test_a_thousand_requests_of_one_client_wait_behind_one_another(queue: FairQueue[str]) -> None:
    for _ in range(1000):
        wait(queue, "many")
    assert turns(queue, 10) == ["many"] * 10
    wait(queue, "one")
    assert "one" in turns(queue, 2)
    assert repr(queue) == "<FairQueue 989 of 1 clients, 1 more remembered>"


def test_a_thousand_clients_leave_one_more_its_equal_part(queue: FairQueue[str]) -> None:
    for client in range(1000):
        for _ in range(2):
            wait(queue, f"client {client}")
    wait(queue, "one more")
    assert "one more" in turns(queue, 1001)


def test_long_requests_get_fewer_turns(queue: FairQueue[str]) -> None:
    for _ in range(100):
        wait(queue, "long")
        wait(queue, "short")
    used: Counter[str] = Counter()
    for _ in range(55):
        entry = queue.first()
        assert entry is not None
        queue.serve(entry, 1.0 if entry.client == "long" else 0.1)
        used[entry.client] += 1
    assert used == {"long": 5, "short": 50}


def test_what_was_guessed_wrong_is_corrected(queue: FairQueue[str]) -> None:
    for _ in range(20):
        wait(queue, "long")
        wait(queue, "short")
    assert turns(queue, 2) == ["long", "short"]
    queue.settle("long", 2.0)
    assert turns(queue, 3) == ["short", "short", "long"]
    queue.settle("short", -2.0)
    assert turns(queue, 3) == ["short"] * 3


def test_a_cost_nobody_knows_still_makes_clients_take_turns(queue: FairQueue[str]) -> None:
    for client in "aabb":
        wait(queue, client)
    assert turns(queue, 4, cost_s=0.0) == ["a", "b", "a", "b"]
    assert queue.debt_s("a") == pytest.approx(LEAST_TURN_S)


def test_one_request_at_a_time_washes_no_debt_off(queue: FairQueue[str]) -> None:
    served: Counter[str | None] = Counter()
    for _ in range(100):
        wait(queue, "many")
    for _ in range(40):
        if not any(entry.client == "one at a time" for entry in queue):
            wait(queue, "one at a time")
        served[turn(queue)] += 1
    assert served == {"many": 20, "one at a time": 20}


def test_idleness_earns_nothing(queue: FairQueue[str]) -> None:
    wait(queue, "idle")
    turn(queue)
    for _ in range(100):
        wait(queue, "busy")
    turns(queue, 50)
    for _ in range(10):
        wait(queue, "idle")
    assert Counter(turns(queue, 10)) == {"idle": 5, "busy": 5}


def test_an_old_burst_costs_a_few_turns_and_no_more(queue: FairQueue[str]) -> None:
    for _ in range(20):
        wait(queue, "steady")
    turn(queue)
    for _ in range(1000):
        queue.settle("burst", 60.0)
    assert queue.debt_s("burst") == MOST_DEBT_TURNS
    wait(queue, "burst")
    assert turns(queue, 8) == ["steady"] * 7 + ["burst"]


def test_who_waits_pays_in_full_and_is_forgiven_when_it_comes_back(queue: FairQueue[str]) -> None:
    stays, other = wait(queue, "slow"), wait(queue, "other")
    wait(queue, "slow")
    queue.serve(stays, 1.0)
    queue.settle("slow", 3600.0)
    assert queue.debt_s("slow") == 3601
    assert queue.first() is other
    for entry in queue:
        queue.remove(entry)
    wait(queue, "slow")
    assert queue.debt_s("slow") == MOST_DEBT_TURNS


def test_guesses_that_are_far_too_low_for_one_client_do_not_favour_it(queue: FairQueue[str]) -> None:
    """Every turn is guessed at 50 ms, but one client's take 1 s; its real time is known before the next turn."""
    used: Counter[str] = Counter()
    for client in ("long", "b", "c", "d"):
        for _ in range(400):
            wait(queue, client)
    for _ in range(610):
        entry = queue.first()
        assert entry is not None
        queue.serve(entry, 0.05)
        if entry.client == "long":
            queue.settle("long", 0.95)
        used[entry.client] += 1
    assert used == {"long": 10, "b": 200, "c": 200, "d": 200}


def test_only_so_many_clients_are_remembered(queue: FairQueue[str]) -> None:
    wait(queue, "waiting")
    for client in range(MOST_REMEMBERED + 100):
        queue.settle(f"client {client}", 1.0)
    assert repr(queue) == f"<FairQueue 1 of 1 clients, {MOST_REMEMBERED} more remembered>"
    assert turns(queue, 2) == ["waiting", None]


def test_who_owes_nothing_any_more_is_forgotten(queue: FairQueue[str]) -> None:
    for client in "abc":
        wait(queue, client)
    turns(queue, 3)
    for _ in range(5):
        wait(queue, "busy")
    turns(queue, 5)
    assert repr(queue) == "<FairQueue 0 of 0 clients, 1 more remembered>"


def test_a_charge_is_not_paid_out_of_idle_time(queue: FairQueue[str]) -> None:
    queue.settle("owes more, so that the next is not forgotten", 90.0)
    queue.settle("idle", 1.0)
    for _ in range(50):
        wait(queue, "busy")
    turns(queue, 50)
    queue.settle("idle", 5.0)
    assert queue.debt_s("idle") == 5


def test_who_gives_up_pays_nothing(queue: FairQueue[str]) -> None:
    gone, stays = wait(queue, "a", item="gone"), wait(queue, "a", item="stays")
    queue.remove(gone)
    assert queue.debt_s("a") == 0
    assert not gone.waiting
    assert queue.first() is stays


def test_a_place_given_out_of_turn_does_not_put_newcomers_behind(queue: FairQueue[str]) -> None:
    for _ in range(3):
        wait(queue, "a")
    for _ in range(5):
        favoured = wait(queue, "favoured")
        queue.serve(favoured, 1.0)
    wait(queue, "newcomer")
    assert turns(queue, 2) == ["a", "newcomer"]


def test_the_dead_do_not_pile_up(queue: FairQueue[str]) -> None:
    wait(queue, "a", due=0.0)
    for _ in range(1000):
        queue.remove(wait(queue, "a", due=5.0))
        queue.settle("a", 0.01)
        assert len(queue._turns) <= 20
        assert len(queue._clients["a"].by_due) <= 20


@dataclass
class Charged:
    """What one client was charged; corrections beside, for no order can foresee them."""

    turns_s: float = 0.0
    longest_s: float = 0.0
    corrections_s: float = 0.0
    waiting: list[Entry[int]] = field(default_factory=list)


@dataclass
class Stretch:
    """Since when two clients both wait, how far one was ahead of the other."""

    most: float
    least: float


class Fairness(RuleBasedStateMachine):
    """Over every stretch in which two clients wait, their seconds differ by one turn of each at most."""

    clients = st.sampled_from("abcd")

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.charged = {client: Charged() for client in "abcd"}
        self.stretches: dict[tuple[str, str], Stretch] = {}
        self.corrected = 0.0
        self.order = 0

    @rule(client=clients, due=st.integers(0, 5), number=st.integers(1, 6))
    def begin_to_wait(self, client: str, due: int, number: int) -> None:
        for _ in range(number):
            self.order += 1
            entry = Entry(item=0, rank=0, client=client, due=due, size=1, leaves=9.0, arrival=self.order)
            self.queue.add(entry)
            self.charged[client].waiting.append(entry)

    @precondition(lambda self: len(self.queue) > 0)
    @rule(cost_s=st.floats(LEAST_TURN_S, 10))
    def serve(self, cost_s: float) -> None:
        entry = self.queue.first()
        assert entry is not None
        of_client = self.charged[entry.client]
        assert (entry.due, entry.arrival) == min((each.due, each.arrival) for each in of_client.waiting)
        self.queue.serve(entry, cost_s)
        of_client.waiting.remove(entry)
        of_client.turns_s += cost_s
        of_client.longest_s = max(of_client.longest_s, cost_s)

    @rule(client=clients, number=st.integers(0, 10))
    def give_up(self, client: str, number: int) -> None:
        waiting = self.charged[client].waiting
        if number < len(waiting):
            self.queue.remove(waiting.pop(number))

    @rule(client=clients, difference_s=st.floats(-5, 5))
    def settle(self, client: str, difference_s: float) -> None:
        self.queue.settle(client, difference_s)
        self.corrected += abs(difference_s)

    @invariant()
    def nobody_is_far_ahead(self) -> None:
        for one, other in combinations("abcd", 2):
            first, second = self.charged[one], self.charged[other]
            if not (first.waiting and second.waiting):
                self.stretches.pop((one, other), None)
                continue
            ahead = first.turns_s - second.turns_s
            stretch = self.stretches.setdefault((one, other), Stretch(ahead, ahead))
            stretch.most, stretch.least = max(stretch.most, ahead), min(stretch.least, ahead)
            # Who joins may still owe what it was charged before, at most MOST_DEBT_TURNS of the longest turn.
            owed = MOST_DEBT_TURNS * max(each.longest_s for each in self.charged.values())
            bound = first.longest_s + second.longest_s + self.corrected + owed
            assert stretch.most - stretch.least <= bound + 1e-6

    @invariant()
    def all_are_there_once(self) -> None:
        waiting = [entry for each in self.charged.values() for entry in each.waiting]
        assert len(self.queue) == len(waiting)
        assert sorted(entry.arrival for entry in self.queue) == sorted(entry.arrival for entry in waiting)


TestFairness = Fairness.TestCase


@given(
    st.lists(st.lists(st.floats(0.001, 10), min_size=1, max_size=15), min_size=2, max_size=6),
    st.integers(0, 40),
)
def test_from_a_level_start_nobody_is_ahead_by_more_than_one_turn(costs: list[list[float]], begun: int) -> None:
    """costs: of each client's requests. The stretch ends as soon as one of them has nothing left."""
    queue: FairQueue[str] = FairQueue()
    for client, its_costs in enumerate(costs):
        for number, _ in enumerate(its_costs):
            wait(queue, str(client), due=number, item=f"{client} {number}")
    charged, marks = [0.0] * len(costs), [[0.0] * len(costs)]
    left = [len(each) for each in costs]
    longest = max(max(each) for each in costs)
    while all(left):
        entry = queue.first()
        assert entry is not None
        client, number = map(int, entry.item.split())
        queue.serve(entry, costs[client][number])
        charged[client] += costs[client][number]
        left[client] -= 1
        marks.append(list(charged))
        assert max(charged) - min(charged) <= longest + 1e-9
    since = marks[min(begun, len(marks) - 1)]
    later = [now - then for now, then in zip(charged, since, strict=True)]
    assert max(later) - min(later) <= 2 * longest + 1e-9
