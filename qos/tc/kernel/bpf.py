# SPDX-License-Identifier: Apache-2.0
"""The door to bpf(2): load the classifier, and run it on the bytes of a packet without any device.

No loader is needed for a program without maps and relocations: two calls of one syscall.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct

from qos.tc.errors import KernelError

__all__ = ["load", "run"]

# bpf(2): arch/*/syscalls; on all that share asm-generic/unistd.h it is 280.
_SYSCALLS = {"x86_64": 321, "i686": 357, "armv7l": 386, "ppc64le": 361, "s390x": 351}
_GENERIC = 280
_LOAD, _TEST_RUN = 5, 10
_SCHED_CLS = 3
_LOG_SIZE = 1 << 20
_SK_BUFF_SIZE, _PRIORITY = 192, 32
_NEEDS_BPF = "CAP_BPF is needed, too (AmbientCapabilities=CAP_NET_ADMIN CAP_BPF in a systemd unit)"
_libc = ctypes.CDLL(None, use_errno=True)


def load(instructions: bytes, name: str) -> int:
    """A file descriptor of the verified program; whoever gets it closes it."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    doing = f"load the classifier of {len(instructions) // 8} instructions"
    try:
        return _bpf(_LOAD, _load_attributes(code, licence, name, None), doing)
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise KernelError(error.errno, f"{error.said}: {_NEEDS_BPF}", doing) from None
        if error.errno == errno.ENOSYS:
            raise
    # Once more, for the verifier's reason: its log makes a good program slow to load.
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return _bpf(_LOAD, _load_attributes(code, licence, name, log), doing)
    except KernelError as error:
        lines = log.value.decode(errors="replace").strip().splitlines()
        said = next((line for line in reversed(lines) if line and not line.startswith(("processed", "verif"))), "")
        raise KernelError(error.errno, said or error.said, doing) from None


def _load_attributes(code: ctypes.Array, licence: ctypes.Array, name: str, log: ctypes.Array | None) -> bytes:  # type: ignore[type-arg]  # an array of c_char has no name in ctypes' stubs
    return struct.pack(
        "=IIQQIIQII16sI",
        _SCHED_CLS,
        len(code) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        0,
        0,
        re.sub(r"[^A-Za-z0-9_.]", "_", name).encode()[:15],
        0,
    )


def run(fd: int, packet: bytes, *, priority: int = 0) -> tuple[int, int]:
    """The program's answer for an Ethernet frame, and the packet priority that it leaves (BPF_PROG_TEST_RUN)."""
    frame = ctypes.create_string_buffer(packet, len(packet))
    before = ctypes.create_string_buffer(_SK_BUFF_SIZE)
    struct.pack_into("=I", before, _PRIORITY, priority)
    after = ctypes.create_string_buffer(_SK_BUFF_SIZE)
    attributes = bytearray(
        struct.pack(
            "=IIIIQQIIIIQQIII4x",
            fd,
            0,
            len(packet),
            0,
            ctypes.addressof(frame),
            0,
            1,
            0,
            len(before),
            len(after),
            ctypes.addressof(before),
            ctypes.addressof(after),
            0,
            0,
            0,
        )
    )
    answered = ctypes.create_string_buffer(bytes(attributes), len(attributes))
    _call(_TEST_RUN, answered, "run the classifier on a packet")
    (action,) = struct.unpack_from("=i", answered, 4)
    (left,) = struct.unpack_from("=I", after, _PRIORITY)
    return action, left


def _bpf(command: int, attributes: bytes, doing: str) -> int:
    return _call(command, ctypes.create_string_buffer(attributes, len(attributes)), doing)


def _call(command: int, attributes: ctypes.Array, doing: str) -> int:  # type: ignore[type-arg]  # as above
    number = _SYSCALLS.get(platform.machine(), _GENERIC)
    answer = int(_libc.syscall(number, command, attributes, len(attributes)))
    if answer < 0:
        code = ctypes.get_errno()
        raise KernelError(code, os.strerror(code), doing)
    return answer
