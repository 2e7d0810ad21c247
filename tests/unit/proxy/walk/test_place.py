# SPDX-License-Identifier: Apache-2.0
"""What a request holds: given back once, with what it told."""

from __future__ import annotations

import pytest

from backends.outcome import Outcome
from proxy.walk.place import Place
from tests.fakes.endpoints import pool_of, request_for, traffic_class


def test_it_is_given_back_once_and_says_so():
    left = []
    request = request_for(traffic_class(1), now=0.0)
    place = Place(lambda *told: left.append(told), pool_of(1).endpoints[0], request, 1, 0.25)
    assert repr(place) == "<Place at e0, rank 1>"
    outcome = Outcome.unused()
    place.leave(outcome)
    assert left == [(place, outcome, 0.25)]
    assert repr(place) == "<Place at e0, rank 1, left>"
    with pytest.raises(RuntimeError, match="twice"):
        place.leave(outcome)
