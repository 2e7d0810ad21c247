# SPDX-License-Identifier: Apache-2.0
"""Many workers seen as one gateway: the pages of the admin's address and the commands of its socket.

Every question goes to all workers at once. One that does not answer in time is named, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from proxy.supervise.asking import Said, WorkerLink, Workers, ask_all, silent
from proxy.supervise.documents import records_in
from proxy.supervise.merging import Totals
from proxy.supervise.standing import Standing
from proxy.telemetry.admin import Document
from proxy.telemetry.exposition import process, render
from proxy.telemetry.families import Exported, Family, exported
from proxy.telemetry.link_metrics import LinksSeen, link_families
from qos.diagnosis import judged, report
from qos.record import merged

__all__ = ["View"]

_STATES = ("starting", "ready", "draining")
_ITSELF = ""
"""Among the sources of metrics."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class View:
    """restarts: workers replaced because they died, by place; missing: what else than workers keeps the gateway from
    serving, one name each; also: processes that are no workers and use the machine all the same; pools: what a worker
    lacks that has not begun to say so."""

    def __init__(
        self,
        workers: Workers,
        *,
        restarts: Callable[[], Mapping[int, int]] = dict,
        missing: Callable[[], Sequence[str]] = tuple,
        also: Workers = tuple,
        pools: Sequence[str] = (),
    ) -> None:
        self._workers = workers
        self._restarts = restarts
        self._missing = missing
        self._also = also
        self._pools = pools
        self.totals = Totals()
        self._links: LinksSeen | None = None
        self.draining = False
        """Whether the whole gateway is on its way out."""
        self.commands = Standing(workers)

    def __repr__(self) -> str:
        return f"<View of {len(self._workers())} workers, {self.totals!r}>"

    @property
    def documents(self) -> Mapping[str, Document]:
        """What /v1/... tells, by path."""
        return {"/v1/pools": self.commands.pools, "/v1/diagnose": self.diagnose, "/v1/workers": self.workers}

    def lack(self, pools: Sequence[str]) -> None:
        """What a worker lacks from now on that has not begun to say so."""
        self._pools = pools

    def show_links(self, seen: LinksSeen) -> None:
        """What traffic control was when it was last read."""
        self._links = seen

    async def joined(self, worker: WorkerLink) -> None:
        """One is ready: it is told what stands, before anybody is sent to it."""
        await self.commands.tell(worker)

    async def leaving(self, worker: WorkerLink) -> None:
        """One is about to be ended: hear once more what it has counted."""
        for said in await ask_all([worker], "metrics"):
            if not said.error:
                self.totals.hear(worker.name, msgspec.convert(said.payload, list[Exported]))

    def departed(self, worker: WorkerLink) -> None:
        """One is gone, however: what it had counted last stays in the sums."""
        self.totals.depart(worker.name)

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics of all as text, in the format that an Accept field prefers; and its content type."""
        heard = await ask_all([*self._workers(), *self._also()], "metrics")
        # Of two generations the newer one says what a metric is.
        heard.sort(key=lambda each: (-each.worker.generation, each.worker.place))
        present = {each.name for each in (*self._workers(), *self._also())}
        # Who has gone while others were waited for is in the sums already, by what it had said before.
        told = {
            each.worker.name: msgspec.convert(each.payload, list[Exported])
            for each in heard
            if not each.error and each.worker.name in present
        }
        told[_ITSELF] = [*exported(self._own(len(silent(heard))), ()), *process()]
        return render(self.totals.page(told, present), accept)

    async def not_ready(self) -> list[str]:
        """What keeps the gateway from serving now; nothing: every worker that new connections go to is ready."""
        workers = [each for each in self._workers() if each.current]
        missing = ["draining"] if self.draining else []
        missing.extend(self._missing())
        if not workers and not self.draining:
            missing.append("no worker is there")
        asked = [each for each in workers if not (self.draining and each.state == "draining")]
        for said in await ask_all(asked, "not_ready"):
            missing.extend(self._lacks(said, alone=len(workers) == 1))
        return list(dict.fromkeys(missing))

    def _lacks(self, said: Said, *, alone: bool) -> list[str]:
        starting = said.worker.state == "starting"
        if said.error and not starting:
            return silent([said])
        # One that starts says nothing before it has read its config: until then it lacks everything.
        names = list(self._pools) if said.error else [str(each) for each in said.payload]
        if starting and not names:
            return [f"{said.worker.name} is starting"]
        return names if alone else [f"{said.worker.name}: {each}" for each in names]

    async def diagnose(self) -> object:
        """How the promises stand, judged on what all of them recorded. Questions go on between two promises."""
        heard = await ask_all(self._workers(), "diagnose")
        records = [record for said in heard if not said.error for record in records_in(said.payload)]
        promises = []
        for record in merged(records):
            promises.append(judged(record))
            await asyncio.sleep(0)
        return report(promises, silent(heard))

    async def workers(self) -> object:
        """Every worker as it is."""
        restarts = self._restarts()
        return {"workers": [_document(each, restarts) for each in await ask_all(self._workers(), "status")]}

    def _own(self, unheard: int) -> Iterator[Family]:
        states = [each.state for each in self._workers()]
        workers = Family("inferlane_workers", "Worker processes, by what they do.", ("state",))
        workers.samples.extend(((state,), states.count(state)) for state in _STATES)
        yield workers
        yield Family("inferlane_workers_silent", "Workers that did not answer.", (), samples=[((), unheard)])
        text = "Workers that were replaced because they died."
        yield Family("inferlane_worker_restarts", text, (), True, [((), sum(self._restarts().values()))])
        if self._links is not None:
            yield from link_families(self._links)


def _document(said: Said, restarts: Mapping[int, int]) -> dict[str, Any]:
    worker = said.worker
    return {
        "name": worker.name,
        "pid": worker.pid,
        "generation": worker.generation,
        "place": worker.place,
        "state": worker.state,
        "current": worker.current,
        "in_flight": None if said.error else said.payload["in_flight"],
        "restarts": restarts.get(worker.place, 0),
        "memory_bytes": _resident(worker.pid),
    } | ({"silent": said.error} if said.error else {})


def _resident(pid: int) -> int | None:
    """Bytes of memory that it has; None: it is gone, or nobody may know."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None
