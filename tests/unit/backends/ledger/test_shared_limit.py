# SPDX-License-Identifier: Apache-2.0
"""An adaptive limit that one worker learns for all."""

from __future__ import annotations

import pytest

from backends.ledger.column import LEAD_S
from backends.ledger.shared_limit import SharedLimit
from qos.limit import AdaptiveLimit
from tests.fakes.ledgers import Crew


@pytest.fixture
def limits():
    with Crew(2) as crew:
        yield [SharedLimit(AdaptiveLimit(4, 64), each.column("pool", "endpoint")) for each in crew.workers]


def grow(limit: SharedLimit, now: float) -> float:
    """Answers that show that one more request costs nothing."""
    before = limit.limit
    while limit.limit <= before:
        now += 0.001
        limit.finished(0.01, limit.limit, now)
    return now


def test_before_anybody_knows_it_is_where_one_worker_would_begin(limits):
    assert [each.limit for each in limits] == [16, 16]


def test_what_the_leader_finds_holds_for_all_and_what_others_see_does_not(limits):
    leader, follower = limits
    now = grow(leader, 100.0)
    found = leader.limit
    assert follower.limit == found > 16
    for _ in range(200):
        follower.failed(now)
    assert leader.limit == found
    assert repr(follower) == f"<SharedLimit {found}, following>"


def test_who_takes_over_goes_on_from_what_was_found(limits):
    leader, follower = limits
    now = grow(leader, 100.0) + 2 * LEAD_S
    found = leader.limit
    follower.finished(0.01, 1, now)
    assert found * 0.8 <= follower.limit <= found
    assert "leading" in repr(follower)
    assert leader.limit == follower.limit
