# SPDX-License-Identifier: Apache-2.0
"""Asks a running gateway to upgrade itself, by its admin Unix socket, and waits for the outcome."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from proxy.commands.control_client import ControlError, ask_socket
from proxy.config.settings import AdminSettings

__all__ = ["ask_upgrade"]

SILENT_S = 30.0
"""Longest silence of a gateway that gives way to another program in its process."""
_POLL_S = 0.2
_NO_SOCKET = (
    "this gateway has no admin socket: send SIGUSR2 to the process of `inferlane run` instead "
    "(systemctl kill --kill-whom=main -s USR2 inferlane) and read its log"
)


def ask_upgrade(
    admin: AdminSettings,
    *,
    wait_s: float,
    clock: Callable[[], float] = monotonic,
    pause: Callable[[float], None] = sleep,
) -> Any:
    """How it went: state (done or failed) and detail. Raises ControlError: it was refused, or there is no telling."""
    if admin.socket is None:
        raise ControlError(_NO_SOCKET)
    begun = ask_socket(admin.socket, "POST", "/v1/upgrade")
    until = clock() + wait_s
    heard = clock()
    while clock() < until:
        pause(_POLL_S)
        try:
            told = ask_socket(admin.socket, "GET", "/v1/upgrade")
            heard = clock()
        except ControlError:
            if clock() - heard >= SILENT_S:
                raise
            continue
        if told["number"] != begun["number"]:
            raise ControlError("another upgrade was begun since; its outcome is in the gateway's log")
        if told["state"] != "starting":
            return told
    raise ControlError(f"it does not serve after {wait_s:g} s; it goes on, and the gateway's log tells how")
