# SPDX-License-Identifier: Apache-2.0
"""When a worker is started again. Workers themselves: tests/integration/test_workers.py."""

from __future__ import annotations

import asyncio
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.supervise.generation import FIRST_PAUSE_S, LIVED_S, LONGEST_PAUSE_S, _watch, pause_before


def test_pauses_double_up_to_a_bound() -> None:
    pauses, last = [], 0.0
    for _ in range(9):
        last = pause_before(last, 0.5)
        pauses.append(last)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


@given(st.floats(0.0, 20.0), st.floats(0.0, 1e6))
def test_a_pause_is_never_shorter_than_the_first_nor_longer_than_the_longest(last_s: float, lived_s: float) -> None:
    assert FIRST_PAUSE_S <= max(pause_before(last_s, lived_s), FIRST_PAUSE_S) <= LONGEST_PAUSE_S
    assert pause_before(last_s, LIVED_S + lived_s) == FIRST_PAUSE_S


class Deaf:
    """A worker that answers the first so many questions."""

    def __init__(self, answers: int) -> None:
        self.name, self.pid, self.state = "worker 0.0", 1, "ready"
        self.answers = answers
        self.signals: list[int] = []

    async def ask(self, kind: str, *, timeout_s: float) -> None:
        self.answers -= 1
        if self.answers < 0:
            raise TimeoutError

    def signal(self, number: int) -> None:
        self.signals.append(number)
        raise asyncio.CancelledError  # as `_keep` does when it has ended


async def test_one_that_hangs_is_killed_and_one_that_answers_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.supervise.generation.WATCH_S", 0.0)
    worker = Deaf(answers=3)
    with pytest.raises(asyncio.CancelledError):
        await _watch(worker)  # type: ignore[arg-type]
    assert (worker.signals, worker.answers) == ([signal.SIGKILL], -1)
