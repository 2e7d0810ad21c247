# SPDX-License-Identifier: Apache-2.0
"""Making, attaching and clearing the ledger, and claiming blocks in it."""

from __future__ import annotations

import os

import pytest

from backends.ledger.segment import Ledger, LedgerFullError, LedgerMismatchError
from tests.fakes.ledgers import Crew


@pytest.fixture
def crew():
    with Crew(3, pools=2, columns=3) as crew:
        yield crew


def test_who_attaches_finds_the_sizes_in_it(crew):
    again = crew.attach(None)
    assert (again.rows, len(again.event_fds)) == (3, 3)
    assert repr(crew.workers[1]) == "<Ledger row 1 of 3, 0 pools>"
    again.close()


def test_another_arrangement_is_not_touched():
    fd = os.memfd_create("other")
    with pytest.raises(LedgerMismatchError):
        Ledger.attach(fd, row=0, event_fds=[])
    os.close(fd)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_is_not_there_is_refused(crew, row):
    with pytest.raises(ValueError, match="row"):
        crew.attach(row)


def test_without_a_row_nothing_is_counted(crew):
    with pytest.raises(ValueError, match="without a row"):
        crew.supervisor.line("p")
    with pytest.raises(ValueError, match="without a row"):
        crew.supervisor.column("p", "e")


def test_a_name_has_the_same_block_everywhere_and_another_name_another(crew):
    first, second, _ = crew.workers
    assert first.column("p", "e").word == second.column("p", "e").word
    assert len({first.column("p", each).word for each in "efg"}) == 3


def test_a_full_ledger_says_so_and_has_room_again_when_all_have_parted(crew):
    first, second, _ = crew.workers
    columns = [first.column("p", each) for each in "efg"]
    shared = second.column("p", "e")
    with pytest.raises(LedgerFullError, match="no room"):
        first.column("p", "h")
    columns[0].part()
    with pytest.raises(LedgerFullError, match="no room"):
        first.column("p", "h")
    shared.take()
    shared.leave()
    shared.part()
    assert first.column("p", "h").total() == 0


def test_a_dead_workers_places_are_free_and_its_blocks_are_no_longer_its(crew):
    first, second, _ = crew.workers
    dead = [first.column("p", each) for each in "efg"]
    alive = second.column("p", "e")
    for each in (*dead, alive):
        each.take()
    dead[0].leads(100.0)
    crew.supervisor.clear_row(0)
    assert alive.total() == 1
    assert alive.leads(100.0)
    assert second.column("p", "h").total() == 0


def test_clearing_a_row_wakes_all_others(crew):
    first, second, third = (each.line("p") for each in crew.workers)
    looked = []
    for name, line in (("first", first), ("second", second), ("third", third)):
        line.look = lambda name=name: looked.append(name)
    crew.supervisor.clear_row(0)
    for event in crew.supervisor.event_fds:
        assert os.eventfd_read(event) == 1
    for line in (first, second, third):
        line.nudge()
        line.nudge()
    assert looked == ["second", "third"]
