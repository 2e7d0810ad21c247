# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

from backends.ledger.segment import Ledger
from proxy.supervise.rows import Rows


def test_two_generations_have_rows_of_one_ledger_where_there_is_room() -> None:
    first = Rows.create(2, banks=2)
    second = first.beside(2)
    assert second is not None
    assert [each.at(1).row for each in (first, second)] == [1, 3]
    assert first.at(0).fd == second.at(0).fd and len(first.at(0).event_fds) == 4
    assert first.beside(3) is None
    second.clear(1)
    first.close()


def test_another_program_goes_on_with_them() -> None:
    first = Rows.create(2, banks=2)
    second = first.beside(2)
    assert second is not None
    handed = [each.handed() for each in (first, second)]
    assert all(map(os.get_inheritable, (handed[0].fd, *handed[0].event_fds)))
    one = Rows.adopt(handed[0], [])
    two = Rows.adopt(handed[1], [one])
    assert two.ledger is one.ledger and (one.rows, two.rows) == (range(2), range(2, 4))
    one.clear(0)
    one.close()


def test_a_ledger_that_another_version_has_arranged_is_handed_on_and_cleared_by_nobody() -> None:
    fd = os.memfd_create("ledger")
    os.write(fd, bytes(64))
    rows = Rows.written_by_others(2, 4, fd)
    rows.clear(0)
    assert rows.beside(2) is None and len(rows.at(0).event_fds) == 4
    again = Rows.adopt(rows.handed(), [])
    assert again.ledger is None
    again.close()


def test_a_program_arranges_a_file_for_another() -> None:
    fd = os.memfd_create("ledger")
    Ledger.create(4, fd=os.dup(fd)).close()
    rows = Rows.adopt(Rows.written_by_others(2, 4, fd).handed(), [])
    assert rows.ledger is not None and rows.ledger.rows == 4
    rows.close()
