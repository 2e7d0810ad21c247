# SPDX-License-Identifier: Apache-2.0
"""Lines that wait for others are written soon, in order, and whole."""

from __future__ import annotations

import asyncio
import io
from select import PIPE_BUF

from proxy.telemetry.log_output import MOST_WAITING, LogOutput


class Pipe(io.BytesIO):
    """Counts writes, and takes at most so many bytes of each."""

    def __init__(self, at_once: int = 1 << 20) -> None:
        super().__init__()
        self.at_once = at_once
        self.writes = 0

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # bytes or a view of them
        self.writes += 1
        return super().write(bytes(data)[: self.at_once])


class Broken(io.BytesIO):
    def write(self, _: object) -> int:
        raise BrokenPipeError


async def test_lines_are_written_together_and_soon() -> None:
    pipe = Pipe()
    output = LogOutput(pipe)
    for number in range(3):
        output.together(b"line %d" % number)
    assert not pipe.getvalue()
    async with asyncio.timeout(10):
        while not pipe.getvalue():
            await asyncio.sleep(0.001)
    assert pipe.getvalue() == b"line 0\nline 1\nline 2\n"
    assert pipe.writes == 1


async def test_no_write_is_longer_than_a_pipe_takes_whole() -> None:
    """Several workers write to one pipe. What is longer may be taken in parts, with others' lines between (pipe(7))."""
    written: list[bytes] = []

    class Recorded(io.BytesIO):
        def flush(self) -> None:
            if self.getvalue():
                written.append(self.getvalue())
                self.seek(0)
                self.truncate()

    output = LogOutput(Recorded())
    lines = [b"%d" % number * 400 for number in range(30)]
    for each in lines:
        output.together(each)
    output.msg(bytes(2 * PIPE_BUF))
    assert b"".join(written) == b"\n".join([*lines, bytes(2 * PIPE_BUF)]) + b"\n"
    assert all(each.endswith(b"\n") for each in written)
    assert all(len(each) <= PIPE_BUF for each in written[:-1])
    assert written[-1] == bytes(2 * PIPE_BUF) + b"\n"
    assert len(written) < len(lines) / 3


async def test_a_line_that_must_not_wait_goes_behind_those_that_do() -> None:
    pipe = Pipe()
    output = LogOutput(pipe)
    output.together(b"first")
    output.msg(b"second")
    assert pipe.getvalue() == b"first\nsecond\n"


def test_without_a_loop_nothing_waits() -> None:
    pipe = Pipe()
    LogOutput(pipe).together(b"line")
    assert pipe.getvalue() == b"line\n"


async def test_what_waits_is_bounded() -> None:
    pipe = Pipe()
    output = LogOutput(pipe)
    for _ in range(3):
        output.together(bytes(MOST_WAITING // 2))
    assert len(pipe.getvalue()) >= MOST_WAITING


def test_lines_of_a_loop_that_was_closed_go_with_the_next() -> None:
    pipe = Pipe()
    output = LogOutput(pipe)

    async def tell() -> None:
        output.together(b"line")

    asyncio.run(tell())
    asyncio.run(tell())
    output.msg(b"last")
    assert pipe.getvalue() == b"line\nline\nlast\n"


def test_a_stream_that_takes_a_part_gets_the_rest() -> None:
    pipe = Pipe(at_once=3)
    LogOutput(pipe).msg(b"a longer line")
    assert pipe.getvalue() == b"a longer line\n"


async def test_all_lines_that_could_not_be_written_are_counted() -> None:
    output = LogOutput(Broken())
    output.together(b"one")
    output.msg(b"two")
    assert output.lost == 2
