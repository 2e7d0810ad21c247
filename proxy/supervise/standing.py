# SPDX-License-Identifier: Apache-2.0
"""An admin's commands for all workers at once. What was commanded stands: a worker that comes later is told, too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from proxy.endpoints import NotDone
from proxy.supervise.asking import Said, WorkerLink, Workers, ask_all, silent
from proxy.supervise.documents import Drain
from proxy.supervise.overview import merged_endpoint, merged_pools

__all__ = ["MOST_STANDING", "Standing"]

MOST_STANDING = 4096
"""Endpoints taken out at once; names that are looked up come and go."""
_log = structlog.get_logger("inferlane.control")


class Standing:
    """Takes endpoints out in every worker, and puts them back."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._drained: dict[tuple[str, str], Drain] = {}
        self._one_by_one = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Standing {len(self._drained)} endpoints taken out>"

    def replay(self) -> list[dict[str, Any]]:
        """What stands now, as data."""
        return [msgspec.to_builtins(each) for each in self._drained.values()]

    def restore(self, replayed: object) -> None:
        """What stood when this supervisor ran another program."""
        self._drained = {(each.pool, each.endpoint): each for each in msgspec.convert(replayed, list[Drain])}

    async def tell(self, worker: WorkerLink) -> None:
        """Have one do what stands."""
        if self._drained:
            for said in await ask_all([worker], "replay", self.replay()):
                if said.error:
                    _log.warning("control_replay_failed", worker=worker.name, detail=said.error)

    async def pools(self) -> dict[str, Any]:
        """Every endpoint as all workers see it."""
        heard = await ask_all(self._workers(), "pools")
        return merged_pools({each.worker.name: each.payload for each in heard if not each.error}, silent(heard))

    async def drain(self, pool: str, endpoint: str, *, draining: bool, uid: int) -> dict[str, Any]:
        """In every worker, or NotDone says in which."""
        command = Drain(pool, endpoint, draining, uid)
        async with self._one_by_one:
            before = dict(self._drained)
            self._stand(command)  # before anybody is asked: a worker that comes meanwhile is told what stands
            heard = await ask_all(self._workers(), "control", msgspec.to_builtins(command))
            heard = [each for each in heard if not (each.error and each.worker.state == "starting")]
            done = {each.worker.name: each.payload["document"] for each in heard if _did(each)}
            if not done:
                self._drained = before
            if len(done) < len(heard) or not done:
                raise _not_done(command, heard, list(done))
            return {"pool": pool} | merged_endpoint(done)

    def _stand(self, command: Drain) -> None:
        key = (command.pool, command.endpoint)
        if not command.draining:
            self._drained.pop(key, None)
            return
        if key not in self._drained and len(self._drained) >= MOST_STANDING:
            raise NotDone(409, f"{MOST_STANDING} endpoints are taken out already; put some back")
        self._drained[key] = command


def _did(said: Said) -> bool:
    return not said.error and said.payload["status"] == 200


def _not_done(command: Drain, heard: Sequence[Said], done: Sequence[str]) -> NotDone:
    refused = [each for each in heard if not each.error and not _did(each)]
    failed = silent(heard)
    if refused and not failed and not done:  # all of them say the same
        document = dict(refused[0].payload["document"])
        return NotDone(refused[0].payload["status"], document.pop("error"), **document)
    failed += [f"{each.worker.name}: {each.payload['document']['error']}" for each in refused]
    verb = "drained" if command.draining else "undrained"
    why = "; ".join(failed) or "there is no worker"
    where = f"{verb} in {', '.join(done)} but not in {why}" if done else f"{verb} nowhere: {why}"
    remedy = "; give the command again, a worker that is replaced learns it by itself" if done else ""
    _log.warning("control_incomplete", pool=command.pool, endpoint=command.endpoint, done=list(done), failed=failed)
    detail = f"{command.endpoint} of pool {command.pool} is {where}{remedy}"
    return NotDone(502, detail, done=list(done), failed=failed)
