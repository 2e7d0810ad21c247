# SPDX-License-Identifier: Apache-2.0
"""The endpoints that serve one set of models: who may be asked, who is picked, and what all of them learnt together."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import structlog

from backends.choosing.health import HealthRules, HealthState
from backends.choosing.picker import Context, Picker
from backends.choosing.zones import nearest_first
from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.ledger.segment import Ledger, LedgerFullError
from backends.messages import Api
from backends.outcome import Ending, Outcome
from qos.latency import Latencies, TimeNeeded

__all__ = ["Pool"]

_NO_NAMES: frozenset[str] = frozenset()
_log = structlog.get_logger("inferlane.pool")


class Pool:
    """Endpoints, and the rule by which one of them is picked.

    zones: by preference, empty: all alike; rules: when its endpoints are ejected.
    """

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        pick: Picker,
        *,
        zones: Sequence[str] = (),
        rules: HealthRules | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.endpoints: tuple[Endpoint, ...] = ()
        self.zones = tuple(zones)
        self.rules = rules or HealthRules()
        self._pick = pick
        self._rng = rng or random.Random()
        self.api_to_come = Api.OIP
        """What endpoints will understand that are still to come; those that are there tell it themselves."""
        self._turn = 0
        self._latencies: dict[str, Latencies] = {}
        self._all = Latencies()
        self._times_needed: dict[str, TimeNeeded] = {}
        self._joined: list[Endpoint] = []
        self._leaving: set[Endpoint] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._ledger: Ledger | None = None
        self.replace(endpoints)
        self._joined.clear()  # nobody served before them

    def __repr__(self) -> str:
        healthy = sum(each.usable and each.health.state is HealthState.HEALTHY for each in self.endpoints)
        in_flight = sum(each.in_flight for each in self.endpoints)
        return f"<Pool {self.name} {healthy} of {len(self.endpoints)} endpoints healthy, {in_flight} in flight>"

    @property
    def api(self) -> Api:
        """What requests its endpoints understand: all the same."""
        return self.endpoints[0].backend.api if self.endpoints else self.api_to_come

    @property
    def ready(self) -> bool:
        """Whether any endpoint could answer, now or once it has a place free."""
        return any(each.usable for each in self.endpoints)

    @property
    def more_than_one(self) -> bool:
        """Whether a request that one endpoint failed could go to another."""
        return sum(not each.draining for each in self.endpoints) > 1

    def find(self, name: str) -> Endpoint | None:
        """The endpoint of this name."""
        return next((each for each in self.endpoints if each.name == name), None)

    def pick(self, now: float, *, waiting: int = 0, avoid: frozenset[str] = _NO_NAMES) -> Endpoint | None:
        """A free endpoint, which the caller takes at once; None: wait for a place.

        waiting: requests that wait for a place, the one to be placed included; avoid: names of endpoints that others go
        before.
        """
        if self._joined:
            self._welcome(now)
        if len(self.endpoints) == 1:
            # Whatever is known of it, there is no other: every picker and zone comes to this.
            alone = self.endpoints[0]
            return alone if alone.usable and alone.has_room(now) else None
        candidates = self._open(now)
        if candidates is not self.endpoints:  # else all are well
            for each in candidates:
                if each.health.state is HealthState.EJECTED and self._tries(each, avoid, now):
                    return each  # its ejection is over: one request tries it, or it would never come back
        if self.zones:
            candidates = self._of_one_zone(candidates, avoid, now, waiting)
        # The turn counts all endpoints, so that it survives those that come and go.
        positions = self._positions(candidates)
        turn = bisect_left(positions, self._turn) if self._turn < len(self.endpoints) else len(positions)
        index = self._pick(candidates, Context(now, self._rng, turn, waiting, avoid))
        if index is None:
            return None
        self._turn = positions[index] + 1
        return candidates[index]

    def places(self, now: float) -> int:
        """Places of all endpoints that may be asked, at least 1."""
        return self.capacity(now)[0]

    def capacity(self, now: float) -> tuple[int, int]:
        """Places of all endpoints that may be asked, at least 1; and how many of them are free."""
        if len(self.endpoints) == 1:
            alone = self.endpoints[0]
            room = alone.room(now) if alone.usable else 0
            return max(1, room), max(0, room - alone.busy)
        places = free = 0
        for each in self._open(now):
            room = each.room(now)
            places += room
            free += max(0, room - each.busy)
        return max(1, places), free

    def latencies(self, class_name: str) -> Latencies:
        """What this class's answers took here: dispatch to first byte."""
        found = self._latencies.get(class_name)
        if found is None:
            found = self._latencies[class_name] = Latencies()
        return found

    def expected_s(self, class_name: str, now: float) -> float | None:
        """What an answer usually takes: the class's median, else that of all; None: too few were seen."""
        median = self.usual_s(class_name, now)
        return self._all.quantile(0.5, now) if median is None else median

    def usual_s(self, class_name: str, now: float) -> float | None:
        """What an answer usually takes by what this class saw itself; None: it saw too few. Others may ask for far more
        or less work, which is no reason to refuse anything."""
        found = self._latencies.get(class_name)
        return None if found is None else found.quantile(0.5, now)

    def needed_s(self, class_name: str, now: float) -> float | None:
        """What must be left of a request's time for a place to be well spent on it; None: too little is known."""
        needed = self._needed(class_name).seconds(now)
        return self.usual_s(class_name, now) if needed is None else needed

    def first_byte(self, endpoint: Endpoint, latency_s: float, class_name: str, now: float) -> None:
        """A reply has begun that holds its place for longer: see `Endpoint.first_byte`."""
        endpoint.first_byte(latency_s, now)
        self._observe(latency_s, class_name, now)

    def finished(self, endpoint: Endpoint, outcome: Outcome, class_name: str, now: float) -> None:
        """An attempt at this endpoint has ended."""
        before = endpoint.health.state
        if endpoint.finished(outcome, now):
            if outcome.ending is Ending.ANSWERED:
                self._observe(outcome.latency_s, class_name, now)
            elif outcome.ending is Ending.TIMED_OUT:
                self._needed(class_name).given_up(outcome.latency_s, now)
        if endpoint.health.state is not before:
            self._tell(endpoint, before)
        if endpoint in self._leaving and endpoint.in_flight == 0:
            self._let_go(endpoint)

    def may_eject(self) -> bool:
        """Whether failed requests may take out one more; at least one that could answer stays."""
        present = [each for each in self.endpoints if not each.draining]
        out = sum(each.health.state is not HealthState.HEALTHY or not each.backend.ready for each in present)
        share = self.rules.max_ejected
        most = min(max(1, int(share * len(present))), len(present) - 1) if share > 0.0 else 0
        return out < most

    def others_serve(self) -> bool:
        """Whether an endpoint is healthy and takes requests."""
        return any(
            each.usable and each.health.state is HealthState.HEALTHY
            for each in self.endpoints
            if each not in self._joined
        )

    def share(self, ledger: Ledger) -> None:
        """Count the places of its endpoints, present and to come, together with other workers."""
        self._ledger = ledger
        for each in self.endpoints:
            self._count_in_ledger(each, ledger)

    def replace(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """From now on these, in this order; they are started. Those removed are returned: each finishes what it has and
        is closed then."""
        before, self.endpoints = self.endpoints, tuple(endpoints)
        present = set(self.endpoints)
        for each in present.difference(before):
            each.health.rules = self.rules
            each.health.peers = self
            each.draining = each.draining and each not in self._leaving  # an admin's wish stays, ours is over
            if each in self._leaving:
                self._leaving.discard(each)
            elif self._ledger is not None:
                self._count_in_ledger(each, self._ledger)
            self._joined.append(each)
        removed = [each for each in before if each not in present]
        for each in removed:
            each.draining = True
            self._leaving.add(each)
            if each.in_flight == 0:
                self._let_go(each)
        return removed

    async def start(self) -> None:
        """Start all endpoints side by side. The first BackendError stops the others; `close` is due all the same."""
        try:
            async with asyncio.TaskGroup() as starting:
                for endpoint in self.endpoints:
                    starting.create_task(self._start(endpoint))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def close(self) -> None:
        """Close all endpoints, those on their way out too, each whether or not another fails to."""
        if self._closing:
            await asyncio.wait(self._closing)
        present = [*self.endpoints, *self._leaving]
        self._leaving.clear()
        results = await asyncio.gather(*(each.backend.close() for each in present), return_exceptions=True)
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise ExceptionGroup(f"closing pool {self.name}", failures)

    def _open(self, now: float) -> Sequence[Endpoint]:
        """Who may be asked. Those that are stuck, and behind them those that asked for a pause, are left out while
        there are others. Where nobody is healthy, requests are not believed: all but those that probes found down."""
        endpoints = self.endpoints
        for each in endpoints:
            if (
                each.health.state is not HealthState.HEALTHY
                or each.draining
                or not each.backend.ready
                or each.prediction.held_until > now
                or each.stuck(now)
            ):
                return (endpoints if each.usable else ()) if len(endpoints) == 1 else self._sorted_out(now)
        return endpoints

    def _sorted_out(self, now: float) -> list[Endpoint]:
        healthy = False
        admitted: list[Endpoint] = []
        stuck: list[Endpoint] = []
        paused: list[Endpoint] = []
        for each in self.endpoints:
            health = each.health
            well = health.state is HealthState.HEALTHY
            if (well or health.due(now)) and each.backend.ready and not each.draining:
                healthy = healthy or well
                if each.prediction.held_until > now:
                    paused.append(each)
                else:
                    (stuck if each.stuck(now) else admitted).append(each)
        if healthy:
            return admitted or stuck or paused
        return [each for each in self.endpoints if each.usable]

    def _count_in_ledger(self, endpoint: Endpoint, ledger: Ledger) -> None:
        try:
            endpoint.join(ledger.column(self.name, endpoint.name))
        except LedgerFullError as error:
            remedy = "start with more columns, or with fewer endpoints"
            _log.error(  # fail open: it is asked, by more than it has places for at worst
                "endpoint_not_shared", pool=self.name, endpoint=endpoint.name, detail=str(error), remedy=remedy
            )

    def _of_one_zone(
        self, candidates: Sequence[Endpoint], avoid: frozenset[str], now: float, waiting: int
    ) -> list[Endpoint]:
        """Another zone's endpoint goes before one to be avoided in the nearest."""
        others = [each for each in candidates if each.name not in avoid] if avoid else candidates
        found = nearest_first(others, self.zones, now=now, waiting=waiting)
        return found or nearest_first(candidates, self.zones, now=now, waiting=waiting)

    def _tries(self, endpoint: Endpoint, avoid: frozenset[str], now: float) -> bool:
        return endpoint.health.due(now) and endpoint.name not in avoid and endpoint.has_room(now)

    def _positions(self, candidates: Sequence[Endpoint]) -> Sequence[int]:
        """Where they stand among all endpoints, in order."""
        if len(candidates) == len(self.endpoints):
            return range(len(candidates))
        chosen = set(candidates)
        return [index for index, each in enumerate(self.endpoints) if each in chosen]

    def _observe(self, latency_s: float, class_name: str, now: float) -> None:
        self._all.observe(latency_s, now)
        self.latencies(class_name).observe(latency_s, now)
        self._needed(class_name).answered(latency_s, now)

    def _needed(self, class_name: str) -> TimeNeeded:
        found = self._times_needed.get(class_name)
        if found is None:
            found = self._times_needed[class_name] = TimeNeeded()
        return found

    def _tell(self, endpoint: Endpoint, before: HealthState) -> None:
        """What requests found out. Probes tell theirs in lookout/probing.py; a trial that fails changes nothing."""
        after = endpoint.health.state
        if before is HealthState.HEALTHY:
            _log.warning("endpoint_ejected", pool=self.name, endpoint=endpoint.name)
        elif after is HealthState.HEALTHY:
            _log.info("endpoint_returned", pool=self.name, endpoint=endpoint.name)

    def _welcome(self, now: float) -> None:
        """Those that joined begin slowly where others serve already."""
        joined = [each for each in self._joined if each in self.endpoints]
        for each in joined:
            each.health.joined(now)
        self._joined.clear()

    def _let_go(self, endpoint: Endpoint) -> None:
        """Close what was removed and has nothing in flight any more; without a running loop `close` does it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._leaving.discard(endpoint)
        endpoint.part()
        task = loop.create_task(self._close_removed(endpoint))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_removed(self, endpoint: Endpoint) -> None:
        try:
            await endpoint.backend.close()
        except Exception as error:  # noqa: BLE001  nobody waits for it, and the pool goes on without it
            _log.warning("endpoint_close_failed", pool=self.name, endpoint=endpoint.name, detail=repr(error))

    async def _start(self, endpoint: Endpoint) -> None:
        try:
            await endpoint.backend.start()
        except BackendError as error:
            raise BackendError(f"pool {self.name}, endpoint {endpoint.name}: {error}") from error
