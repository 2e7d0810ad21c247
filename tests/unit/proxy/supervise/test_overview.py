# SPDX-License-Identifier: Apache-2.0
"""Several workers' endpoints as one document: counts add up, differences stay visible."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.supervise.overview import merged_endpoint, merged_pools


def endpoint(name: str = "a", state: str = "healthy", **told: Any) -> dict[str, Any]:
    counts = {"zone": None, "in_flight": 1, "slots": 4, "predicted_ms": None, "oldest_ms": None}
    return {"name": name, "state": state} | counts | told


def pools(*endpoints: dict[str, Any], ready: bool = True) -> dict[str, Any]:
    return {"pools": [{"name": "p", "api": "oip", "ready": ready, "endpoints": list(endpoints)}]}


def test_one_worker_s_document_is_its_own():
    document = pools(endpoint(predicted_ms=1.5, oldest_ms=2.0))
    assert merged_pools({"worker 1": document}) == document


def test_counts_add_up_and_a_common_limit_does_not():
    (pool,) = merged_pools({"w1": pools(endpoint()), "w2": pools(endpoint(in_flight=2))})["pools"]
    assert (pool["endpoints"][0]["in_flight"], pool["endpoints"][0]["slots"]) == (3, 4)


def test_times_are_the_longest_and_the_mean_of_those_that_know():
    told = {"w1": endpoint(predicted_ms=2.0, oldest_ms=7.0), "w2": endpoint(predicted_ms=4.0), "w3": endpoint()}
    found = merged_endpoint(told)
    assert (found["predicted_ms"], found["oldest_ms"]) == (3.0, 7.0)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (["healthy", "healthy", "ejected"], "healthy"),
        (["healthy", "ejected"], "ejected"),
        (["probing", "draining", "healthy"], "draining"),
    ],
)
def test_most_decide_and_of_as_many_the_worst_and_who_differs_is_told(states, state):
    found = merged_endpoint({f"w{n}": endpoint(state=each) for n, each in enumerate(states)})
    assert found["state"] == state
    assert list(found["states"].values()) == states


def test_what_only_some_know_is_told_with_their_names():
    told = {"w1": pools(endpoint("a"), endpoint("b")), "w2": pools(endpoint("b"), ready=False)}
    merged = merged_pools(told, ["w3"])
    (pool,) = merged["pools"]
    assert [each.get("known_to") for each in pool["endpoints"]] == [["w1"], None]
    assert not pool["ready"]
    assert merged["silent"] == ["w3"]
