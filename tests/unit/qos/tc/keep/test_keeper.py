# SPDX-License-Identifier: Apache-2.0
"""The keeper's loop beside a vigil that does nothing: it answers whatever the gateway sends, and ends in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from qos.tc.keep.keeper import Keeper
from qos.tc.keep.messages import (
    LONGEST_REQUEST,
    Ended,
    LogLine,
    Readings,
    Refusal,
    Report,
    Standing,
    Statistics,
    Status,
    Stop,
    decode_report,
    encode,
)

STANDING = Standing(id="c0", digest="d0", duty="keep")
READINGS = Readings(links=(), repairs=3)
PATIENCE_S = 30.0


class FakeVigil:
    """Has nothing to keep; says one line at its first look."""

    def __init__(self) -> None:
        self.upkeeps: list[object] = []
        self.looks = 0
        self._reports: list[Report] = []

    def look(self, now: float) -> tuple[float, float]:
        self.looks += 1
        self._reports.append(LogLine(level="info", name="looked", detail=str(self.looks)))
        return 3600.0, 0.0

    def reports(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    def standing(self) -> Standing:
        return STANDING

    def readings(self) -> Readings:
        return READINGS

    def end(self) -> Ended:
        return Ended(released=True)


class Gateway:
    """The other end of the socket pair."""

    def __init__(self, sock: socket.socket, thread: threading.Thread) -> None:
        self.sock = sock
        self.thread = thread
        self._lines = sock.makefile("rb")

    def says(self, line: bytes) -> None:
        self.sock.sendall(line)

    def hears(self) -> Report:
        return decode_report(self._lines.readline())

    def heard_all(self) -> list[Report]:
        return [decode_report(line) for line in self._lines]

    def ended(self) -> bool:
        self.thread.join(PATIENCE_S)
        return not self.thread.is_alive()

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


@pytest.fixture
def vigil() -> FakeVigil:
    return FakeVigil()


@pytest.fixture
def gateway(vigil: FakeVigil) -> Iterator[Gateway]:
    ours, its = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    thread = threading.Thread(target=Keeper(its, vigil).run)  # type: ignore[arg-type]  # as much of one as it needs
    thread.start()
    gateway = Gateway(ours, thread)
    assert gateway.hears() == LogLine(level="info", name="looked", detail="1")
    yield gateway
    gateway.close()
    assert gateway.ended()


def test_each_request_has_its_answer(gateway):
    gateway.says(encode(Statistics()) + encode(Status()))
    assert [gateway.hears(), gateway.hears()] == [READINGS, STANDING]


def test_a_reload_is_answered_and_looks_again_at_once(gateway):
    gateway.says(b'{"do":"reload"}\n')
    assert gateway.hears() == STANDING
    assert gateway.hears() == LogLine(level="info", name="looked", detail="2")


def test_a_request_may_come_in_pieces(gateway):
    for piece in (b'{"do"', b':"stat', b'us"}', b"\n"):
        gateway.says(piece)
    assert gateway.hears() == STANDING


@pytest.mark.parametrize(
    "nonsense", [b"\n", b"hello\n", b"\xff\0\n", b'{"do":"delete","handle":1}\n', b"{" * LONGEST_REQUEST + b"\n"]
)
def test_nonsense_is_answered_with_an_error_and_nothing_else_happens(gateway, nonsense):
    gateway.says(nonsense + encode(Status()))
    assert isinstance(gateway.hears(), Refusal)
    assert gateway.hears() == STANDING


def test_a_line_without_end_is_one_error_and_holds_no_memory(gateway):
    gateway.says(b"x" * 100 * LONGEST_REQUEST + b"\n" + encode(Status()))
    assert isinstance(gateway.hears(), Refusal)
    assert gateway.hears() == STANDING


def test_stop_is_answered_last_and_ends_it(gateway):
    gateway.says(encode(Stop()) + encode(Status()))
    assert gateway.heard_all()[-1] == Ended(released=True)
    assert gateway.ended()


def test_it_ends_with_the_gateway(gateway):
    gateway.sock.shutdown(socket.SHUT_WR)
    assert gateway.heard_all() == [Ended(released=True)]
    assert gateway.ended()


def test_a_gateway_that_does_not_listen_stops_nobody(gateway):
    for _ in range(2000):
        gateway.says(encode(Statistics()) * 10)
    gateway.sock.shutdown(socket.SHUT_WR)
    assert gateway.ended()
