# SPDX-License-Identifier: Apache-2.0
"""Where log lines go: at once, or those that come with every request some together, in the order they were told.

A line a request was a write a request, which cost as much as making the line.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Iterator, Sequence
from select import PIPE_BUF
from time import monotonic
from typing import BinaryIO

__all__ = ["TOGETHER_S", "LogOutput"]

TOGETHER_S = 0.05
"""Longest wait of a line for others. Only a process that is killed loses those that wait."""
MOST_WAITING = 32 * 1024
"""Bytes of lines that wait."""


class LogOutput:
    """One stream. A log that cannot be written must not fail the request it tells about: such lines are counted."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._since = 0.0
        """When the oldest of those that wait came, monotonic seconds."""
        self._at_exit = False
        self.lost = 0

    def __repr__(self) -> str:
        return f"<LogOutput {getattr(self._stream, 'name', self._stream)}, {self.lost} lines lost>"

    @property
    def stream(self) -> BinaryIO:
        """Where they go."""
        return self._stream

    def msg(self, line: bytes) -> None:
        """Write one line, behind those that wait."""
        self._waiting.append(line)
        self.flush()

    debug = info = warning = error = critical = msg

    def together(self, line: bytes) -> None:
        """Write one line soon, with others. Without a running loop: at once."""
        if not self._waiting and not self._begin():
            self.msg(line)
            return
        self._waiting.append(line)
        self._bytes += len(line)
        # A loop that was closed rings no more: who comes next sees that it is late.
        if self._bytes >= MOST_WAITING or monotonic() - self._since > 2 * TOGETHER_S:
            self.flush()

    def flush(self) -> None:
        """Write all that wait."""
        lines, self._waiting, self._bytes = self._waiting, [], 0
        for part in _parts(lines):
            try:
                self._write(b"\n".join(part) + b"\n")
            except OSError:
                self.lost += len(part)

    def _begin(self) -> bool:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._since = monotonic()
        loop.call_later(TOGETHER_S, self.flush)
        if not self._at_exit:
            self._at_exit = True
            atexit.register(self.flush)
        return True

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            # A raw stream may take a part only, as into a pipe while a signal comes.
            left = left[self._stream.write(left) :]
        self._stream.flush()


def _parts(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many together as a pipe takes whole (pipe(7)): other processes write their lines there, too."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and size + len(line) + 1 > PIPE_BUF:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    if part:
        yield part
