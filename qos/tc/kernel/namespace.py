# SPDX-License-Identifier: Apache-2.0
"""Sockets in a network namespace: a thread of its own goes there, so that nobody else has to."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import threading
from pathlib import Path
from typing import Any

from qos.tc.errors import KernelError

__all__ = ["open_socket"]

_NAMES = Path("/run/netns")  # as ip-netns(8); a namespace is never made here, even if its name is misspelt
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_LONGEST_S = 10.0


def open_socket(netns: str | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket in the namespace of this name; None is the one we are in."""
    if netns is None:
        return socket.socket(family, kind, protocol)
    if re.fullmatch(r"[^/\0]+", netns) is None or netns in (".", ".."):
        raise _unknown(netns)
    try:
        namespace = os.open(_NAMES / netns, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _unknown(netns) from None
    except OSError as error:
        raise KernelError(error.errno or 0, str(error.strerror), f"network namespace {netns}") from error
    try:
        return _opened_inside(namespace, netns, (family, kind, protocol))
    finally:
        os.close(namespace)


def _unknown(netns: str) -> KernelError:
    return KernelError(errno.ENOENT, "there is none of this name; `ip netns list` prints them", f"namespace {netns!r}")


def _opened_inside(namespace: int, netns: str, arguments: tuple[int, int, int]) -> socket.socket:
    opened: list[socket.socket] = []
    failed: list[OSError] = []

    def inside() -> None:
        try:
            _enter(namespace)
            opened.append(socket.socket(*arguments))
        except OSError as error:
            failed.append(error)

    # The thread ends in there: nothing of ours runs in another namespace than before.
    thread = threading.Thread(target=inside, name=f"into {netns}", daemon=True)
    thread.start()
    thread.join(_LONGEST_S)
    if opened:
        return opened[0]
    error = failed[0] if failed else TimeoutError(errno.ETIMEDOUT, "no answer")
    code = error.errno or 0
    if code == errno.EPERM:
        raise KernelError(0, "CAP_SYS_ADMIN is needed to enter it: run as root", f"namespace {netns!r}")
    raise KernelError(code, str(error.strerror), f"namespace {netns!r}")


def _enter(namespace: int) -> None:
    setns: Any = ctypes.CDLL(None, use_errno=True).setns  # os.setns() is there from Python 3.12
    if setns(namespace, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
