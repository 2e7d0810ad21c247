# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from backends.endpoint import Endpoint
from tests.fakes.endpoints import IdleBackend


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("oip:10.20.0.5:8000", IdleBackend(), 2)


def test_it_has_as_many_places_as_slots(endpoint):
    assert endpoint.free
    endpoint.take()
    assert endpoint.free
    endpoint.take()
    assert not endpoint.free
    endpoint.release()
    assert endpoint.free


def test_it_is_not_free_while_its_backend_is_not_ready(endpoint):
    endpoint.backend.ready = False
    assert not endpoint.free
    endpoint.take()  # picked just before
    assert repr(endpoint) == "<Endpoint oip:10.20.0.5:8000 not ready, 1 of 2 in flight>"


def test_a_miscount_is_a_bug_and_said_at_once(endpoint):
    with pytest.raises(RuntimeError, match="released more often than taken"):
        endpoint.release()
    endpoint.take()
    endpoint.take()
    with pytest.raises(RuntimeError, match="2 of 2 in flight"):
        endpoint.take()
    assert endpoint.in_flight == 2
