# SPDX-License-Identifier: Apache-2.0
"""Names looked up without taking anybody's thread: a name server that stops answering blocks nothing but its names.

getaddrinfo(3) waits for as long as it likes and cannot be stopped. In the loop's own executor, some look-ups of a
name that hangs would take all threads, those that models need too, and keep the process from ending. Here each name
has at most one thread, which nobody waits for at the end, and whoever asks meanwhile shares its answer.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

__all__ = ["Found", "look_up"]

Found = list[tuple[Any, ...]]
"""As getaddrinfo gives it."""
_Key = tuple[str, int, int]
_pending: dict[_Key, asyncio.Future[Found]] = {}


async def look_up(host: str, port: int, kind: socket.SocketKind) -> Found:
    """All that getaddrinfo finds. Raises OSError; waits without a bound, so the caller has one."""
    loop = asyncio.get_running_loop()
    key = (host, port, int(kind))
    answer = _pending.get(key)
    if answer is None or answer.get_loop() is not loop:
        answer = _pending[key] = loop.create_future()
        threading.Thread(target=_ask, args=(key, answer), name=f"look-up {host}", daemon=True).start()
    return await asyncio.shield(answer)


def _ask(key: _Key, answer: asyncio.Future[Found]) -> None:
    """In the thread."""
    host, port, kind = key
    found: Found | Exception
    try:
        found = socket.getaddrinfo(host, port, type=kind)
    except (OSError, UnicodeError) as error:
        found = error
    try:
        answer.get_loop().call_soon_threadsafe(_told, key, answer, found)
    except RuntimeError:
        _forget(key, answer)  # the loop was closed: nobody waits any more


def _told(key: _Key, answer: asyncio.Future[Found], found: Found | Exception) -> None:
    """Back on the loop."""
    _forget(key, answer)
    if isinstance(found, Exception):
        error = found if isinstance(found, OSError) else OSError(f"its name cannot be looked up ({found})")
        answer.set_exception(error)
        answer.exception()  # seen, though all who asked may have left
    else:
        answer.set_result(found)


def _forget(key: _Key, answer: asyncio.Future[Found]) -> None:
    if _pending.get(key) is answer:
        del _pending[key]
