# SPDX-License-Identifier: Apache-2.0
"""Asking for an upgrade and waiting for its outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.commands.control_client import ControlError
from proxy.commands.upgrade_client import SILENT_S, ask_upgrade
from proxy.config.settings import AdminSettings, Bind

ADMIN = AdminSettings(socket=Path("/run/admin.sock"), bind=Bind("127.0.0.1", 9433))
STARTING = {"state": "starting", "number": 3, "detail": ""}
DONE = {"state": "done", "number": 3, "detail": "generation 1 serves, with 2 workers"}


class Gateway:
    """Answers in this order, the last one for ever; each pause takes its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any] | ControlError) -> None:
        self.now = 0.0
        self._answers = list(answers)
        monkeypatch.setattr("proxy.commands.upgrade_client.ask_socket", self._ask)

    def _ask(self, path: Path, method: str, target: str) -> dict[str, Any]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, ControlError):
            raise answer
        return answer

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def asked(self, wait_s: float = 60.0) -> Any:
        return ask_upgrade(ADMIN, wait_s=wait_s, clock=lambda: self.now, pause=self.pause)


def test_it_waits_for_the_outcome_while_the_gateway_gives_way_to_another_program(monkeypatch) -> None:
    gone = ControlError("Connection refused")
    assert Gateway(monkeypatch, STARTING, STARTING, gone, gone, DONE).asked() == DONE


def test_a_refusal_is_told_at_once(monkeypatch) -> None:
    with pytest.raises(ControlError, match="is going on"):
        Gateway(monkeypatch, ControlError("an upgrade is going on")).asked()


def test_a_gateway_that_stays_silent_is_told_of(monkeypatch) -> None:
    gateway = Gateway(monkeypatch, STARTING, ControlError("Connection refused"))
    with pytest.raises(ControlError, match="Connection refused"):
        gateway.asked()
    assert SILENT_S <= gateway.now < SILENT_S + 1


def test_the_wait_has_an_end(monkeypatch) -> None:
    with pytest.raises(ControlError, match="it does not serve after 5 s"):
        Gateway(monkeypatch, STARTING).asked(wait_s=5.0)


def test_another_upgrade_is_not_taken_for_ours(monkeypatch) -> None:
    with pytest.raises(ControlError, match="another upgrade"):
        Gateway(monkeypatch, STARTING, DONE | {"number": 4}).asked()


def test_without_a_socket_the_signal_is_told() -> None:
    with pytest.raises(ControlError, match="send SIGUSR2"):
        ask_upgrade(AdminSettings(bind=Bind("127.0.0.1", 9433)), wait_s=1.0)
