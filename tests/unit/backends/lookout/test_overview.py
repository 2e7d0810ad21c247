# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec

from backends.lookout.overview import endpoint_document, pools_document
from backends.outcome import Ending, Outcome
from tests.fakes.fleet import watched_endpoint, watched_pool


def test_of_an_endpoint_that_nobody_asked_nothing_is_predicted():
    endpoint, _ = watched_endpoint("e", zone="edge")
    assert endpoint_document(endpoint, 100.0) == {
        "name": "e",
        "state": "healthy",
        "zone": "edge",
        "in_flight": 0,
        "slots": 4,
        "predicted_ms": None,
        "oldest_ms": None,
    }


def test_what_it_does_and_what_it_took_is_told_in_milliseconds():
    endpoint, _ = watched_endpoint("e")
    endpoint.take(100.0)
    endpoint.take(100.0)
    endpoint.finished(Outcome(ending=Ending.ANSWERED, latency_s=0.25, held_s=0.25), 100.25)
    told = endpoint_document(endpoint, 100.25)
    assert (told["in_flight"], told["oldest_ms"], told["predicted_ms"]) == (1, 250.0, 250.0)


def test_pools_are_told_in_their_order_as_json():
    first, _ = watched_pool("a", "b", name="first")
    second, (only,) = watched_pool("c", name="second")
    only.ready = False
    first.endpoints[1].draining = True
    told = msgspec.json.decode(msgspec.json.encode(pools_document([first, second], 1.0)))
    assert [(pool["name"], pool["ready"], pool["api"]) for pool in told["pools"]] == [
        ("first", True, "oip"),
        ("second", False, "oip"),
    ]
    states = [[(each["name"], each["state"]) for each in pool["endpoints"]] for pool in told["pools"]]
    assert states == [[("a", "healthy"), ("b", "draining")], [("c", "loading")]]
