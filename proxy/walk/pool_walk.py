# SPDX-License-Identifier: Apache-2.0
"""One pool as the walk uses it: its gate, and the attempts that take places there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from backends.asking.attempts import AttemptCounts, Attempts
from backends.ledger.line import Line
from backends.ledger.segment import Ledger, LedgerFullError
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.routes import Routes
from proxy.walk.gate import Gate
from qos.budget import Budget
from qos.traffic_class import ClassTable, TrafficClass

__all__ = ["PoolWalk", "pool_walks"]

_log = structlog.get_logger("inferlane.pool")


@dataclass(frozen=True, slots=True)
class PoolWalk:
    """What a request for this pool's models goes through."""

    gate: Gate
    attempts: Attempts

    @property
    def pool(self) -> Pool:
        """Whose it is."""
        return self.gate.pool

    @property
    def evicted(self) -> Mapping[str, int]:
        """Requests that lost their place to a higher class, by class."""
        return self.gate.evicted

    @property
    def counts(self) -> AttemptCounts:
        """Retries and hedges."""
        return self.attempts.counts

    def depth(self, traffic_class: TrafficClass) -> int:
        """How many requests of this class wait."""
        return self.gate.depth(traffic_class)


def pool_walks(
    settings: Sequence[PoolSettings],
    routes: Routes,
    classes: ClassTable,
    *,
    clock: Callable[[], float],
    ledger: Ledger | None = None,
) -> dict[str, PoolWalk]:
    """One for each pool, by its name. settings: those that the routes were built from; ledger: where places and queues
    are counted together with other workers, on the same clock."""
    walks = {}
    for pool, each in zip(routes.pools, settings, strict=True):
        gate = Gate(pool, classes, clock=clock, line=None if ledger is None else _shared(pool, ledger))
        attempts = Attempts(gate, pool, retry=Budget(each.retry.budget), most_retries=each.retry.most, clock=clock)
        walks[pool.name] = PoolWalk(gate, attempts)
    return walks


def _shared(pool: Pool, ledger: Ledger) -> Line | None:
    """The pool's line, and its endpoints' places counted with other workers'."""
    try:
        line = ledger.line(pool.name)
    except LedgerFullError as error:
        remedy = "fewer pools, or one worker"
        _log.error("pool_not_shared", pool=pool.name, detail=str(error), remedy=remedy)
        return None  # fail open: each worker counts for itself
    pool.share(ledger)
    return line
