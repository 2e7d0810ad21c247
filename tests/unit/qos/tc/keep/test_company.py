# SPDX-License-Identifier: Apache-2.0
"""Of all who keep by the same books, the last one to end is told that it is."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from qos.tc.keep.company import Company


def test_the_last_one_is_alone(tmp_path: Path) -> None:
    file = tmp_path / "qos" / "keepers"
    with closing(Company(file)) as first, closing(Company(file)) as second:
        assert not second.alone()
        assert first.alone()


def test_of_two_that_end_at_once_one_is_the_last(tmp_path: Path) -> None:
    file = tmp_path / "keepers"
    with closing(Company(file)) as first, closing(Company(file)) as second:
        assert [first.alone(), second.alone()] == [False, True]


def test_one_that_died_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "keepers"
    Company(file).close()
    with closing(Company(file)) as left:
        assert left.alone()


def test_where_nothing_can_be_written_nobody_else_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with closing(Company(tmp_path / "file" / "keepers")) as lone:
        assert lone.alone()
