# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.keys import KEY_BYTES, Keys


def test_all_keys_differ_and_none_is_shown() -> None:
    keys = Keys.fresh()
    each = {keys.cookie, keys.retry, keys.reset, keys.ticket, keys.steering}
    assert len(each) == 5 and {len(key) for key in each} == {KEY_BYTES}
    assert repr(keys) == "Keys()"


def test_workers_get_the_same_keys() -> None:
    keys = Keys.fresh()
    assert Keys.from_bytes(keys.to_bytes()) == keys
    with pytest.raises(ValueError, match="are not 128"):
        Keys.from_bytes(bytes(127))
    with pytest.raises(ValueError, match="32 bytes"):
        Keys(bytes(32), bytes(32), bytes(32), bytes(31))


def test_what_clients_may_still_hold_outlives_a_restart(tmp_path: Path) -> None:
    first, second = Keys.load(tmp_path / "new" / "state"), Keys.load(tmp_path / "new" / "state")
    assert (first.reset, first.ticket, first.steering) == (second.reset, second.ticket, second.steering)
    assert first.cookie != second.cookie and first.retry != second.retry
    (file,) = (tmp_path / "new" / "state").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_ticket_key_of_last_week_gives_way_and_the_reset_key_stays(tmp_path: Path) -> None:
    first = Keys.load(tmp_path)
    (file,) = tmp_path.iterdir()
    now = file.stat().st_mtime
    for days, kept in ((6, True), (8, False), (0, False)):
        if days:
            os.utime(file, (now - days * 86400,) * 2)
        loaded = Keys.load(tmp_path)
        assert loaded.reset == first.reset
        assert (loaded.ticket == first.ticket) is kept
    assert Keys.load(tmp_path).ticket == loaded.ticket


@pytest.mark.parametrize("damage", ["short", "long", "shown"])
def test_a_file_that_holds_no_secrets_is_made_anew(tmp_path: Path, damage: str) -> None:
    first = Keys.load(tmp_path)
    (file,) = tmp_path.iterdir()
    if damage == "shown":
        file.chmod(0o640)
    else:
        file.write_bytes(file.read_bytes()[:-1] if damage == "short" else file.read_bytes() + b"x")
    second = Keys.load(tmp_path)
    assert second.reset != first.reset and second.ticket != first.ticket
    assert Keys.load(tmp_path).reset == second.reset
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_state_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        Keys.load(tmp_path / "file" / "below")


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    (tmp_path / "quic.keys").mkdir()
    with pytest.raises(IsADirectoryError):
        Keys.load(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["quic.keys"]


def test_a_reset_of_one_socket_s_is_none_of_another_s() -> None:
    """RFC 9000 section 21.11: who is told one socket's token for an id must not be able to end another's connection."""
    keys = Keys.fresh()
    ours, others = keys.at(("192.0.2.1", 443)), keys.at(("192.0.2.1", 8443))
    assert ours.reset != others.reset != keys.reset
    assert ours == keys.at(("192.0.2.1", 443)), "after a restart, too"
    assert (ours.cookie, ours.retry, ours.ticket) == (keys.cookie, keys.retry, keys.ticket)
