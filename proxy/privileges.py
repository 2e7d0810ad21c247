# SPDX-License-Identifier: Apache-2.0
"""What the kernel lets this process do, given up for good before the first door opens (capabilities(7)).

Nothing that reads what strangers send needs more than a user has. docs/decisions/0004-capabilities-given-up.md says why
root keeps its way with files. Capabilities are a thread's: this must run before there is a second one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from enum import IntEnum
from pathlib import Path

__all__ = ["Capability", "drop", "effective", "kept"]


class Capability(IntEnum):
    """Numbers of linux/capability.h that are spoken of here."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    SETPCAP = 8
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    BPF = 39


_FIRST_FREE_PORT = 1024
_STATUS = Path("/proc/self/status")
# linux/prctl.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL = 23, 24, 38, 47, 4
_VERSION_3 = 0x20080522  # linux/capability.h: two words of 32 bits each
_MOST = 64


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def kept(ports: Collection[int], *, root: bool) -> frozenset[int]:
    """What a gateway with these ports keeps: a low port asks for one, and root stays root towards files."""
    low = {Capability.NET_BIND_SERVICE} if any(0 < port < _FIRST_FREE_PORT for port in ports) else set()
    files = {Capability.DAC_OVERRIDE, Capability.DAC_READ_SEARCH} if root else set()
    return frozenset(low | files)


def effective() -> frozenset[int]:
    """What this thread may do now."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("CapEff:"))
    mask = int(line.split()[1], 16)
    return frozenset(number for number in range(_MOST) if mask >> number & 1)


def drop(keep: Collection[int]) -> None:
    """Give up all but these, for this process and all that it starts. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_CAP_AMBIENT, _CLEAR_ALL)
    _shrink_bounds(libc, keep)
    mask = sum(1 << number for number in keep) & sum(1 << number for number in effective())
    words = (_Word * 2)(*(_Word(part, part, 0) for part in (mask & 0xFFFFFFFF, mask >> 32)))
    if libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), words) != 0:
        raise _refused("capset")


def _shrink_bounds(libc: ctypes.CDLL, keep: Collection[int]) -> None:
    """What no program that is started here could get back, not even from its file."""
    if Capability.SETPCAP not in effective():
        return  # not ours to shrink, and no need: NO_NEW_PRIVS holds root, too (cap_bprm_creds_from_file())
    for number in range(_MOST):
        if number in keep or libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) != 1:
            continue  # kept, gone already, or -1: this kernel knows no such capability
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            raise _refused("prctl")


def _prctl(libc: ctypes.CDLL, option: int, argument: int) -> None:
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise _refused("prctl")


def _refused(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"capabilities could not be given up: {call}: {os.strerror(number)}")
