# SPDX-License-Identifier: Apache-2.0
"""One endpoint's count over workers, and who learns its limit."""

from __future__ import annotations

import pytest

from backends.ledger.column import LEAD_S
from tests.fakes.ledgers import Crew


@pytest.fixture
def columns():
    with Crew(3) as crew:
        yield [each.column("pool", "endpoint") for each in crew.workers]


def test_what_each_takes_all_count(columns):
    first, second, third = columns
    first.take()
    second.take()
    second.take()
    assert {each.total() for each in columns} == {3}
    assert repr(third) == "<Column 0 of 3 in flight>"
    second.leave()
    assert third.total() == 2


def test_the_first_that_has_an_answer_leads_until_it_has_none_for_long(columns):
    first, second, _ = columns
    assert first.leads(100.0)
    assert not second.leads(100.0 + LEAD_S / 2)
    assert first.leads(100.0 + LEAD_S / 2)
    assert not second.leads(100.0 + LEAD_S)
    assert second.leads(100.0 + 2 * LEAD_S)
    assert not first.leads(100.0 + 2 * LEAD_S)


def test_the_limit_is_everybodys(columns):
    assert columns[1].limit == 0
    columns[0].publish(9)
    assert columns[1].limit == 9
