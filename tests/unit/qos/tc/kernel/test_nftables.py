# SPDX-License-Identifier: Apache-2.0
"""What is told of our nftables table from what the kernel lists, and what nft(8) says; the real ones: test_tc_nft."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel import nftables
from qos.tc.kernel.attributes import attribute, text
from qos.tc.kernel.nftables import Listed, missing, refusal, set_table, table_shown
from qos.tc.state import FOREIGN_TABLE, OUR_CHAIN
from qos.tc.tree import ALTERED

CHAIN = f"{OUR_CHAIN}abc"


def listed(*rules: tuple[str, str], chains: tuple[str, ...] = (CHAIN,), dormant: bool = False, used: int = 1) -> Listed:
    return Listed(chains=chains, rules=rules, used=used, dormant=dormant)


BOTH = (CHAIN, "1 of 2"), (CHAIN, "2 of 2")


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, ""),
        (listed(*BOTH), CHAIN),
        (listed(BOTH[0]), CHAIN + ALTERED),
        (listed(*reversed(BOTH)), CHAIN + ALTERED),
        (listed(*BOTH, (CHAIN, "")), CHAIN + ALTERED),
        (listed(BOTH[0], (CHAIN, "")), CHAIN + ALTERED),
        (listed(), CHAIN + ALTERED),
        (listed(*BOTH, dormant=True), CHAIN + ALTERED),
        (listed(*BOTH, chains=(CHAIN, "theirs")), CHAIN + ALTERED),
        (listed(chains=(), used=0), OUR_CHAIN + ALTERED),
        (listed(chains=(), used=1), FOREIGN_TABLE),
        (listed(("input", ""), chains=("input",)), FOREIGN_TABLE),
    ],
)
def test_a_table_is_whole_altered_or_somebody_elses(found: Listed | None, shown: str) -> None:
    assert table_shown(found) == shown


class FakeSocket:
    """Answers each question as the kernel would: by message type, the bodies or an error."""

    def __init__(self, answers: dict[int, list[bytes] | int], *, interrupted: int = 0) -> None:
        self.answers, self.interrupted = answers, interrupted
        self.asked: list[int] = []

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def sendto(self, message: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)
        length, kind, _, self.sequence, _ = struct.unpack_from("=IHHII", message)
        assert length == len(message)
        self.asked.append(kind & 0xFF)

    def recv(self, most: int) -> bytes:
        assert most >= 32 * 1024
        found = self.answers[self.asked[-1]]
        if isinstance(found, int):
            return self._message(2, struct.pack("=i", -found))
        flags = 0
        if self.interrupted:
            self.interrupted -= 1
            flags = 0x10
        # A late answer to an earlier question is none to this one.
        late = struct.pack("=IHHII", 16, 3, 0, self.sequence - 1, 0)
        return late + b"".join(self._message(0x0A00, bytes(4) + each, flags) for each in found) + self._message(3, b"")

    def _message(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        padded = body + bytes(-len(body) % 4)
        return struct.pack("=IHHII", 16 + len(body), kind, flags, self.sequence, 0) + padded


GET_TABLE, GET_CHAIN, GET_RULE = 1, 4, 7
NAME = text(1, "inferlane")


def rule(chain: str, comment: str, *, table: str = "inferlane") -> bytes:
    told = comment.encode() + b"\0"
    userdata = bytes([1, 2]) + b"xx" + bytes([0, len(told)]) + told
    return text(1, table) + text(2, chain) + attribute(7, userdata)


def big(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "big"))


WHOLE: dict[int, list[bytes] | int] = {
    GET_TABLE: [NAME + big(2, 0) + big(3, 1)],
    GET_CHAIN: [NAME + text(3, CHAIN), text(1, "firewalld") + text(3, "other")],
    GET_RULE: [rule("other", "", table="firewalld"), rule(CHAIN, "1 of 2"), rule(CHAIN, "2 of 2")],
}


def observed(monkeypatch: pytest.MonkeyPatch, socket: FakeSocket) -> str:
    monkeypatch.setattr(nftables, "open_socket", lambda *_: socket)
    return nftables.observe_table("blue")


def test_the_table_is_read_from_what_the_kernel_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert observed(monkeypatch, FakeSocket(WHOLE)) == CHAIN
    dormant = WHOLE | {GET_TABLE: [NAME + big(2, 1) + big(3, 1)]}
    assert observed(monkeypatch, FakeSocket(dormant)) == CHAIN + ALTERED


def test_where_there_is_none_one_question_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = FakeSocket({GET_TABLE: errno.ENOENT})
    assert observed(monkeypatch, asked) == ""
    assert asked.asked == [GET_TABLE]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_without_nftables_and_who_may_not_ask_have_none(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    assert observed(monkeypatch, FakeSocket({GET_TABLE: code})) == ""


def test_what_cannot_be_asked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="list inet inferlane"):
        observed(monkeypatch, FakeSocket({GET_TABLE: errno.ENOBUFS}))


def test_a_list_during_which_something_changed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = FakeSocket(WHOLE, interrupted=2)
    assert observed(monkeypatch, asked) == CHAIN
    assert asked.asked.count(GET_TABLE) == 3
    with pytest.raises(KernelError, match="faster than it can be listed"):
        observed(monkeypatch, FakeSocket(WHOLE, interrupted=100))


def test_without_the_program_the_remedy_is_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt install nftables" in missing(None)
    assert "apt install nftables" in refusal(None, "")


def test_a_kernel_without_nftables_is_told_with_the_option_that_gives_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _program(tmp_path, monkeypatch, "exit 0")
    monkeypatch.setattr(nftables, "open_socket", lambda *_: FakeSocket({GET_TABLE: errno.EINVAL}))
    assert "CONFIG_NF_TABLES" in missing(None)
    monkeypatch.setattr(nftables, "open_socket", lambda *_: FakeSocket({GET_TABLE: errno.EPERM}))
    assert "CAP_NET_ADMIN" in missing(None)
    monkeypatch.setattr(nftables, "open_socket", lambda *_: FakeSocket(WHOLE))
    assert missing(None) == ""


def test_what_nft_complains_about_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "printf '/dev/stdin:3:1-2: Error: Could not process rule: No such file or directory\\ntable x\\n^^\\n' >&2"
    _program(tmp_path, monkeypatch, f"{said}; exit 1")
    assert refusal(None, "table x") == "Could not process rule: No such file or directory"
    monkeypatch.setattr(nftables, "observe_table", lambda _: "")
    with pytest.raises(KernelError, match="nftables table inet inferlane: Could not process rule"):
        set_table(None, "table x")


def test_nft_gets_the_whole_transaction_and_whether_to_do_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(
        tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/arguments; while read -r a; do echo "$a"; done > {tmp_path}/got'
    )
    monkeypatch.setattr(nftables, "observe_table", lambda _: "")
    assert refusal(None, "one\ntwo\n") == ""
    assert (tmp_path / "arguments").read_text() == "--check -f -\n"
    set_table(None, "three\n")
    assert (tmp_path / "arguments").read_text() == "-f -\n"
    assert (tmp_path / "got").read_text() == "three\n"


def test_nft_that_hangs_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(tmp_path, monkeypatch, "exec /bin/sleep 60")
    monkeypatch.setattr(nftables, "_LONGEST_S", 0.1)
    assert refusal(None, "") == "nft has not ended in 0 s"


def test_somebody_elses_table_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(tmp_path, monkeypatch, f"touch {tmp_path}/ran")
    monkeypatch.setattr(nftables, "observe_table", lambda _: FOREIGN_TABLE)
    with pytest.raises(
        KernelError, match="it is not ours, so it stays; rename it, or: nft delete table inet inferlane"
    ):
        set_table(None, "table x")
    assert not (tmp_path / "ran").exists()


def _program(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "nft"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
