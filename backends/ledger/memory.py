# SPDX-License-Identifier: Apache-2.0
"""The segment as one process has it mapped: the same words as whole numbers and as seconds, and the locks on them.

Locks are POSIX record locks on the segment's file: they belong to the process, so the kernel gives them up when it is
killed, even while a child of it lives on; open file description locks would not exclude workers that inherited one
description. They would also go if the process closed any other descriptor of the file: `mmap` keeps a second
one, which is closed with the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_UN, lockf
from mmap import mmap

from backends.ledger.layout import Layout

__all__ = ["Memory"]


class Memory:
    """Of this file, which is closed with it."""

    __slots__ = ("_bytes", "_map", "cells", "fd", "layout", "numbers")

    def __init__(self, fd: int, layout: Layout) -> None:
        self.fd = fd
        self.layout = layout
        self._map = mmap(fd, layout.bytes)
        self._bytes = memoryview(self._map)
        self.cells: memoryview[int] = self._bytes.cast("q")
        self.numbers: memoryview[float] = self._bytes.cast("d")

    def __repr__(self) -> str:
        return f"<Memory {self.layout!r}>"

    @contextmanager
    def locked(self, byte: int) -> Iterator[None]:
        """One of its locks; others may be held beside it."""
        lockf(self.fd, LOCK_EX, 1, byte)
        try:
            yield
        finally:
            lockf(self.fd, LOCK_UN, 1, byte)

    def close(self) -> None:
        """Once; whoever still reads or writes it gets an error."""
        for view in (self.numbers, self.cells, self._bytes):
            view.release()
        self._map.close()
        os.close(self.fd)
