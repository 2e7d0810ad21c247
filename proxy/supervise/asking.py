# SPDX-License-Identifier: Apache-2.0
"""One question to all workers at once: what each said, and who did not answer in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["ANSWER_S", "Said", "WorkerLink", "Workers", "ask_all", "silent"]

ANSWER_S = 2.0
"""Longest wait for a worker: an event loop that is so far behind has more to do than to tell of it."""


class WorkerLink(Protocol):
    """One worker as its supervisor knows it."""

    @property
    def name(self) -> str:
        """For people; no two workers of this gateway ever have the same."""
        ...

    @property
    def pid(self) -> int: ...
    @property
    def place(self) -> int:
        """In the groups of sockets: no two living workers have the same."""
        ...

    @property
    def generation(self) -> int: ...
    @property
    def state(self) -> str:
        """starting, ready or draining."""
        ...

    @property
    def current(self) -> bool:
        """Whether it is of the generation that new connections go to."""
        ...

    async def ask(self, kind: str, payload: object = None, *, timeout_s: float) -> Any:
        """Its answer. Raises OSError: it is gone, it complains, or it does not answer in time."""
        ...


Workers = Callable[[], Sequence[WorkerLink]]
"""All that live, of every generation."""


class Said(NamedTuple):
    """One worker's answer."""

    worker: WorkerLink
    payload: Any
    """None where there is an error."""
    error: str
    """Why there is no answer; empty: there is one."""


async def ask_all(
    workers: Iterable[WorkerLink], kind: str, payload: object = None, *, timeout_s: float = ANSWER_S
) -> list[Said]:
    """Ask everybody at once, and wait no longer than this for anybody."""
    return list(await asyncio.gather(*(_ask(each, kind, payload, timeout_s) for each in workers)))


def silent(heard: Iterable[Said]) -> list[str]:
    """Who did not answer, and why."""
    return [f"{each.worker.name}: {each.error}" for each in heard if each.error]


async def _ask(worker: WorkerLink, kind: str, payload: object, timeout_s: float) -> Said:
    try:
        return Said(worker, await worker.ask(kind, payload, timeout_s=timeout_s), "")
    except TimeoutError:
        return Said(worker, None, f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Said(worker, None, str(error) or type(error).__name__)
