# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat

import pytest

from qos.tc.change.ownership import give, make_folder


def test_folders_are_made_for_their_owner_alone(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in ("a", "a/b")] == [0o700, 0o700]


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a" / "b")


@pytest.mark.needs_root
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path):
    os.chown(tmp_path, 4711, 4712)

    make_folder(tmp_path / "a" / "b")
    with (tmp_path / "a" / "file").open("w") as file:
        give(file.fileno(), tmp_path / "a")

    for made in ("a", "a/b", "a/file"):
        owner = (tmp_path / made).stat()
        assert (owner.st_uid, owner.st_gid) == (4711, 4712)
