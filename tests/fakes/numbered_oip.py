# SPDX-License-Identifier: Apache-2.0
"""Requests that carry a number, and a model server whose answers are made of it: what is mixed up or cut shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from tests.fakes.raw_quic import section
from tests.fakes.scripted_oip import Asked, ScriptedOip

__all__ = ["INFER", "LONG", "MIB", "VALUES", "answer_to", "body_of", "numbered_oip", "ran_once"]

INFER = section(b"/v2/models/m/infer", (b"content-type", b"application/json"))
MIB = 1 << 20
VALUES = 4000
"""Of a usual answer: some 7 packets."""
LONG = MIB // 2
"""Of the answer to a request of a MiB, which is as long."""


def body_of(number: int, size: int = 20_000) -> bytes:
    """A request's body. It ends with its number as an INT32 tensor does."""
    return bytes(size - 4) + number.to_bytes(4, "little")


def answer_to(number: int, values: int = VALUES) -> bytes:
    """The whole body of the reply."""
    text = ",".join([str(number)] * values).encode()
    return b'{"model_name":"m","outputs":[{"name":"y","datatype":"INT32","shape":[%d],"data":[%b]}]}' % (values, text)


def ran_once(server: ScriptedOip, numbers: Iterable[int]) -> None:
    """Every request came to the backend, and none of them twice."""
    assert Counter(map(_number, server.asked)) == Counter(numbers)


@asynccontextmanager
async def numbered_oip() -> AsyncIterator[ScriptedOip]:
    """The server, until the block ends."""
    server = ScriptedOip(_answer)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def _number(asked: Asked) -> int:
    return int.from_bytes(asked.body[-4:], "little")


async def _answer(asked: Asked) -> tuple[int, bytes]:
    return 200, answer_to(_number(asked), LONG if len(asked.body) >= MIB else VALUES)
