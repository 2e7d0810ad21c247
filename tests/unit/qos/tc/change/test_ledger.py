# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat

import msgspec
import pytest

from qos.tc.change.ledger import (
    Baseline,
    Confirmed,
    DeviceBaseline,
    Earlier,
    LastRollback,
    Ledger,
    LedgerError,
    Pending,
    boot_clock,
    boot_id,
)
from qos.tc.state import ROOT, Bfifo, Bpf, Filter, Htb, HtbClass, LinkState, NetworkState, Qdisc, TcClass, Unread
from tests.fakes.link_policies import policy_of

STATE = NetworkState(
    netns="a",
    links=(
        LinkState(
            name="eth0",
            qdiscs=(Qdisc(0x51A0000, ROOT, Htb(0x24)), Qdisc(0x240000, 0x51A0024, Bfifo(9000))),
            classes=(TcClass(0x51A0024, 0x51A0001, HtbClass(1, 2, 3, 4, 0, 1514)),),
            filters=(Filter(0xFFFFFFF3, 0x51A0, 3, 1, Bpf("inferlane-0123")),),
            gso_max_size=3000,
        ),
    ),
)
POLICY = policy_of(flows=({"class": "batch", "proto": "tcp", "dport": (2049, "5000-5010")},))
RECORDS = [
    Confirmed(id="a1", policy=POLICY, programs={"inferlane-0123": b"\x95\0"}, earlier=Earlier(id=None, policy=None)),
    Pending(
        id="b2",
        policy=POLICY,
        previous="a1",
        snapshots=(STATE,),
        programs={"inferlane-0123": bytes(range(256))},
        classifiers=("inferlane-0123",),
        boot_id="boot",
        deadline=12.5,
        confirm_s=120.0,
        applier=7,
    ),
    Baseline(
        boot_id="boot",
        devices=(
            DeviceBaseline(
                netns=None,
                device="eth0",
                index=3,
                clsact=True,
                gso_max_size=65536,
                root=Qdisc(0x10000, ROOT, Unread("cake", b"\1\2")),
            ),
        ),
    ),
    LastRollback(id="b2", at="2026-01-01 12:00:00", why="nobody confirmed it", failure=None),
]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "state" / "qos")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_written_is_read_again(ledger, record):
    assert ledger.read(type(record)) is None
    ledger.write(record)
    assert ledger.read(type(record)) == record
    ledger.remove(type(record))
    assert ledger.read(type(record)) is None
    ledger.remove(type(record))


def test_only_its_owner_may_read_it(ledger):
    ledger.write(RECORDS[0])
    assert stat.S_IMODE(ledger.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(ledger.file(Confirmed).stat().st_mode) == 0o600


def test_a_failed_write_leaves_the_old_record_and_nothing_else(ledger, monkeypatch):
    ledger.write(RECORDS[0])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qos.tc.change.ledger.os.fsync", full)
    with pytest.raises(LedgerError, match=r"No space left on device; give a directory .*--state-dir"):
        ledger.write(msgspec.structs.replace(RECORDS[0], id="new"))
    assert ledger.read(Confirmed) == RECORDS[0]
    assert os.listdir(ledger.folder) == ["confirmed.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"id": "a"}',
        b'{"format": 1}',
        b'{"format": 1, "id": "a", "policy": 5, "programs": {}}',
        msgspec.json.encode(RECORDS[0])[:-5],
        b'{"format": "one"}',
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(ledger, content):
    ledger.write(RECORDS[0])
    ledger.file(Confirmed).write_bytes(content)
    with pytest.raises(LedgerError) as refused:
        ledger.read(Confirmed)
    assert str(refused.value).startswith(f"{ledger.folder}/confirmed.json: damaged (")
    assert "kernel was not touched; move the file away" in str(refused.value)
    assert ledger.file(Confirmed).read_bytes() == content


def test_another_format_is_not_guessed_at(ledger):
    ledger.write(RECORDS[0])
    ledger.file(Confirmed).write_bytes(b'{"format": 2, "anything": []}')
    with pytest.raises(LedgerError, match=r"confirmed.json: has format 2, this inferlane reads 1; use the one that"):
        ledger.read(Confirmed)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"file: cannot be written: File exists; give a directory"):
        Ledger(tmp_path / "file" / "qos").write(RECORDS[0])


def test_a_place_that_cannot_be_read_is_named(ledger):
    ledger.file(Confirmed).mkdir(parents=True)
    with pytest.raises(LedgerError, match=r"confirmed.json: cannot be read: Is a directory"):
        ledger.read(Confirmed)
    with pytest.raises(LedgerError, match=r"confirmed.json: cannot be removed"):
        ledger.remove(Confirmed)


def test_the_clock_goes_on_and_the_boot_stays():
    assert 0 < boot_clock() <= boot_clock()
    assert boot_id() == boot_id() != ""
