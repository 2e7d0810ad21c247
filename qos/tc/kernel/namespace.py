# SPDX-License-Identifier: Apache-2.0
"""Sockets and processes in a network namespace: a thread of its own goes there, so that nobody else has to."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qos.tc.errors import KernelError

__all__ = ["inside", "open_socket"]

Made = TypeVar("Made")

_NAMES = Path("/run/netns")  # as ip-netns(8); a namespace is never made here, even if its name is misspelt
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_LONGEST_S = 10.0


def open_socket(netns: str | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket in the namespace of this name; None is the one we are in."""
    try:
        return inside(netns, lambda: socket.socket(family, kind, protocol))
    except OSError as error:
        where = "this namespace" if netns is None else f"namespace {netns!r}"
        raise KernelError(error.errno or 0, str(error.strerror), f"open a socket in {where}") from error


def inside(netns: str | None, act: Callable[[], Made], *, longest_s: float = _LONGEST_S) -> Made:
    """What `act` returns in the namespace of this name: a socket or a process that it makes is in there."""
    if netns is None:
        return act()
    if re.fullmatch(r"[^/\0]+", netns) is None or netns in (".", ".."):
        raise _unknown(netns)
    try:
        namespace = os.open(_NAMES / netns, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _unknown(netns) from None
    except OSError as error:
        raise KernelError(error.errno or 0, str(error.strerror), f"network namespace {netns}") from error
    try:
        return _done_inside(namespace, netns, act, longest_s)
    finally:
        os.close(namespace)


def _unknown(netns: str) -> KernelError:
    return KernelError(errno.ENOENT, "there is none of this name; `ip netns list` prints them", f"namespace {netns!r}")


def _done_inside(namespace: int, netns: str, act: Callable[[], Made], longest_s: float) -> Made:
    made: list[Made] = []
    refused: list[OSError] = []
    failed: list[BaseException] = []

    def there() -> None:
        try:
            _enter(namespace)
        except OSError as error:
            refused.append(error)
            return
        try:
            made.append(act())
        except BaseException as error:  # noqa: BLE001  # raised again where the caller sees it
            failed.append(error)

    # The thread ends in there: nothing of ours runs in another namespace than before.
    thread = threading.Thread(target=there, name=f"into {netns}", daemon=True)
    thread.start()
    thread.join(longest_s)
    if made:
        return made[0]
    if failed:
        raise failed[0]
    error = refused[0] if refused else TimeoutError(errno.ETIMEDOUT, "no answer")
    if error.errno == errno.EPERM:
        raise KernelError(0, "CAP_SYS_ADMIN is needed to enter it: run as root", f"namespace {netns!r}")
    raise KernelError(error.errno or 0, str(error.strerror), f"namespace {netns!r}")


def _enter(namespace: int) -> None:
    setns: Any = ctypes.CDLL(None, use_errno=True).setns  # os.setns() is there from Python 3.12
    if setns(namespace, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
