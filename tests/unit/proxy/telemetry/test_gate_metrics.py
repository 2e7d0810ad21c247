# SPDX-License-Identifier: Apache-2.0
"""Gates, attempts and endpoints, read as they stand."""

from __future__ import annotations

from collections import Counter

from proxy.telemetry.gate_metrics import gate_families
from tests.fakes.endpoints import traffic_class
from tests.fakes.gates import AttemptsSeen, GateSeen

CLASSES = [traffic_class(0), traffic_class(1)]


def samples(*gates: GateSeen, now: float = 50.0) -> dict[tuple[str, ...], float]:
    return {
        (family.name.removeprefix("inferlane_"), *labels): value
        for family in gate_families(gates, CLASSES, now)
        for labels, value in family.samples
    }


def test_who_waits_is_told_by_class():
    found = samples(GateSeen("digits", waiting={"rank-1": 3}))
    assert (found["gate_waiting", "digits", "rank-0"], found["gate_waiting", "digits", "rank-1"]) == (0, 3)


def test_who_lost_its_place_is_counted_by_class():
    assert samples(GateSeen("digits", evicted=Counter({"rank-1": 2})))["evicted", "digits", "rank-1"] == 2


def test_retries_and_hedges_are_counted_by_pool():
    tried = GateSeen("digits", counts=AttemptsSeen(retries=1, retries_denied=2, hedges=3, hedges_won=4))
    found = samples(tried, GateSeen("other"))
    names = ("retries", "retries_denied", "hedges", "hedges_won")
    assert [found[name, "digits"] for name in names] == [1, 2, 3, 4]
    assert [found[name, "other"] for name in names] == [0, 0, 0, 0]


def test_an_endpoint_says_what_it_has_may_have_and_would_take():
    gate = GateSeen("digits")
    gate.pool.add("e0", in_flight=2, slots=5, predicted_s=0.008)
    gate.pool.add("e1")
    found = samples(gate)
    assert found["in_flight", "digits", "e0"] == 2
    assert found["endpoint_slots", "digits", "e0"] == 5
    assert found["endpoint_predicted_seconds", "digits", "e0"] == 0.008
    assert ("endpoint_predicted_seconds", "digits", "e1") not in found


def test_an_endpoint_is_in_one_state_and_that_is_asked_for_now():
    gate = GateSeen("digits")
    gate.pool.add("e0", states={50.0: "ejected", 60.0: "probing"})
    at_50, at_60 = samples(gate), samples(gate, now=60.0)

    def states(found: dict[tuple[str, ...], float]) -> dict[str, float]:
        return {key[-1]: value for key, value in found.items() if key[0] == "endpoint_state"}

    assert states(at_50) == {"healthy": 0, "ejected": 1, "probing": 0, "draining": 0, "loading": 0}
    assert states(at_60) == {"healthy": 0, "ejected": 0, "probing": 1, "draining": 0, "loading": 0}
    assert (at_50["endpoint_ready", "digits", "e0"], at_60["endpoint_ready", "digits", "e0"]) == (0, 1)


def test_without_gates_the_metrics_have_their_names():
    assert samples() == {}
    assert len({each.name for each in gate_families([], [], 0.0)}) == 11
