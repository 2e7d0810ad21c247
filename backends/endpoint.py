# SPDX-License-Identifier: Apache-2.0
"""One place that can answer: the exact count of what it answers now, and what was learnt from what it answered."""

from __future__ import annotations

from bisect import bisect_left, insort
from math import ceil, inf
from typing import Literal

from backends.backend import Backend
from backends.choosing.health import EndpointHealth, HealthState
from backends.choosing.prediction import Prediction
from backends.ledger.column import Column
from backends.ledger.shared_limit import SharedLimit
from backends.outcome import Ending, Outcome
from qos.limit import AdaptiveLimit, Limit

__all__ = ["SLOW_START_S", "Endpoint", "EndpointState"]

_TIMES_SILENT = 10.0
_LEAST_SILENCE_S = 1.0
"""An endpoint with work that answered nothing for so long, and so many times what it usually takes, is stuck."""
_BETWEEN_FAILURES_S = 1.0
"""An endpoint that fails each request and cannot be ejected is asked so often, while others are there."""
_Attempt = tuple[float, int]
"""When it was taken, monotonic seconds, and how many there were then, itself included."""
EndpointState = Literal["healthy", "ejected", "probing", "draining", "loading"]

SLOW_START_S = 10.0
"""An endpoint that joins or comes back among others has all of its places after this."""
_TIMES_USUAL = 2.0
"""A time-out tells of a failure where the endpoint was given so many times as long as it usually takes; a client's
own short patience does not."""


class Endpoint:
    """A backend with a name and a number of places.

    name: unique in its pool, for logs and metrics; limit: how many requests it may have in flight at once; zone: as the
    pool's `zones` name it. Whoever picks it calls `take` before anything else runs, and `finished` however it ends.
    """

    __slots__ = (
        "_answered_at",
        "_answering",
        "_column",
        "_waited_for",
        "backend",
        "draining",
        "health",
        "in_flight",
        "limit",
        "name",
        "prediction",
        "zone",
    )

    def __init__(
        self,
        name: str,
        backend: Backend,
        limit: Limit,
        *,
        zone: str | None = None,
        health: EndpointHealth | None = None,
    ) -> None:
        self.name = name
        self.backend = backend
        self.limit = limit
        self.zone = zone
        self.health = health or EndpointHealth()
        self.prediction = Prediction()
        self.in_flight = 0
        """Of this process; `busy` tells of all."""
        self._column: Column | None = None
        self.draining = False
        """Set by an admin: it finishes what it has and gets nothing new."""
        self._waited_for: list[_Attempt] = []
        self._answering: list[_Attempt] = []
        self._answered_at = -inf

    def __repr__(self) -> str:
        condition = "draining" if self.draining else self.health.state.value if self.backend.ready else "not ready"
        return f"<Endpoint {self.name} {condition}, {self.busy} of {self.slots} in flight>"

    @property
    def slots(self) -> int:
        """Requests that it may have in flight now, of all workers."""
        return self.limit.limit

    @property
    def busy(self) -> int:
        """Requests that it is answering now, of all workers."""
        return self.in_flight if self._column is None else self._column.total()

    def join(self, column: Column) -> None:
        """From now on its places are counted together with those of other workers; it has nothing in flight yet."""
        self._column = column
        if isinstance(self.limit, AdaptiveLimit):
            self.limit = SharedLimit(self.limit, column)

    def part(self) -> None:
        """It is gone from this worker, with nothing in flight."""
        column, self._column = self._column, None
        if column is not None:
            column.part()
        if isinstance(self.limit, SharedLimit):
            self.limit = self.limit.own

    def admits(self, now: float) -> bool:
        """Whether requests go there at all."""
        return self.usable and self.health.admits(now)

    @property
    def usable(self) -> bool:
        """Whether it could answer if it were asked, whatever requests told of it: not while draining, loading or
        found down by probes."""
        return self.backend.ready and not self.draining and not self.health.down

    def room(self, now: float) -> int:
        """Its places: all of them, or after a return a part that grows with time, one at least."""
        slots, returned = self.limit.limit, self.health.returned_at
        if returned is None or now - returned >= SLOW_START_S:
            return slots
        return max(1, min(slots, ceil(slots * (now - returned) / SLOW_START_S)))

    def has_room(self, now: float) -> bool:
        """Whether one of its places is free."""
        column = self._column
        busy = self.in_flight if column is None else column.total()
        return busy < (self.limit.limit if self.health.returned_at is None else self.room(now))

    def free(self, now: float) -> bool:
        """Whether it can take one more request now."""
        return self.busy < self.room(now) and self.admits(now)

    def penalised(self, now: float) -> bool:
        """Whether it failed lately, and that weighs more than what its answers take."""
        return self.prediction.penalised(now)

    def age(self, now: float) -> float:
        """How long the oldest attempt is out without its first byte, seconds; 0.0: none is."""
        return max(0.0, now - self._waited_for[0][0]) if self._waited_for else 0.0

    def silent_s(self, now: float) -> float:
        """How long it has work and answered nothing, seconds: what tells a hung endpoint from one long request."""
        return max(0.0, now - max(self._waited_for[0][0], self._answered_at)) if self._waited_for else 0.0

    def stuck(self, now: float) -> bool:
        """Whether it is silent for so long that more work would only be lost there."""
        # Asked of every endpoint at every turn, and the first condition is nearly always the answer.
        if not self._waited_for or now - self._answered_at <= _LEAST_SILENCE_S:
            return False
        return self.silent_s(now) > max(_LEAST_SILENCE_S, _TIMES_SILENT * (self.prediction.answers or 0.0))

    def expected_s(self, now: float) -> float | None:
        """What an answer will take: the prediction, but no less than what its oldest attempt waits already."""
        predicted = self.prediction.seconds(now)
        if predicted is None or not self._waited_for:
            return predicted
        age = now - self._waited_for[0][0]
        return age if age > predicted else predicted

    def usual_s(self, now: float) -> float | None:
        """What its answers take on average, which does not fade while nobody asks; no less than it is silent already,
        and the penalty while it is penalised. None: nothing is known."""
        usual = self.prediction.usual
        if usual is None or self.penalised(now):
            return self.expected_s(now)
        return max(usual, self.silent_s(now))

    def forgotten(self, now: float) -> bool:
        """Whether nobody asks it, and what is known of it is old."""
        return self.in_flight == 0 and self.prediction.old(now)

    def state(self, now: float) -> EndpointState:
        """In one word, for admins and metrics."""
        if self.draining:
            return "draining"
        if not self.backend.ready:
            return "loading"
        match self.health.state:
            case HealthState.HEALTHY:
                return "healthy"
            case HealthState.PROBING:
                return "probing"
            case HealthState.EJECTED:
                return "ejected"

    def take(self, now: float) -> None:
        """One more request is on its way. With other workers: under the lock under which it was picked."""
        busy = self.busy
        # A shared limit may have fallen since this worker looked: others learn without the lock.
        if busy >= self.slots and not isinstance(self.limit, SharedLimit):
            raise RuntimeError(f"{self!r} was given a request that it has no place for")
        self.in_flight += 1
        if self._column is not None:
            self._column.take()
        self.health.taken(now)
        insort(self._waited_for, (now, busy + 1))

    def first_byte(self, latency_s: float, now: float) -> None:
        """A reply has begun that will hold its place for longer, as a token stream: what it tells is learnt now, and
        `finished` only frees the place, or tells that the rest of it failed."""
        index, off = _nearest(self._waited_for, now - latency_s)
        if off < inf:
            attempt = self._waited_for.pop(index)
            insort(self._answering, attempt)
            self._learn_answer(latency_s, attempt, now)

    def finished(self, outcome: Outcome, now: float) -> bool:
        """One attempt has ended, well or not: its place is free, and what it told is learnt. False: its latency was
        learnt already, by `first_byte`."""
        if self.in_flight == 0:
            raise RuntimeError(f"{self!r} was released more often than taken")
        self.in_flight -= 1
        if self._column is not None:
            self._column.leave()
        taken = now - outcome.held_s
        index, off = _nearest(self._waited_for, taken)
        if self._answering or off == inf:
            answering, how_far = _nearest(self._answering, taken)
            if how_far <= off:
                self._learn_end(outcome, self._answering.pop(answering), now)
                return False
        self._learn(outcome, self._waited_for.pop(index), now)
        return True

    def _learn_end(self, outcome: Outcome, attempt: _Attempt, now: float) -> None:
        """Of a reply that had begun: only that the rest of it failed is news."""
        if outcome.ending is Ending.FAILED:
            self._learn_failure(outcome.retry_after_s, attempt, now)

    def _learn(self, outcome: Outcome, attempt: _Attempt, now: float) -> None:
        match outcome.ending:
            case Ending.ANSWERED:
                self._learn_answer(outcome.latency_s, attempt, now)
            case Ending.FAILED:
                self._learn_failure(outcome.retry_after_s, attempt, now)
            case Ending.TIMED_OUT:
                self.prediction.at_least(outcome.latency_s, now)
                answers = self.prediction.answers
                if answers is None or outcome.latency_s >= _TIMES_USUAL * answers:
                    self._count_failure(attempt, now)
                else:
                    self._learn_nothing(attempt, now)
            case Ending.CANCELLED:
                self.prediction.at_least(outcome.latency_s, now)
                self._learn_nothing(attempt, now)
            case Ending.BLAMELESS if outcome.held_s > 0.0 and self._is_news(attempt):
                self.health.answered(now)  # it refused, so it is there
            case Ending.BLAMELESS:
                self._learn_nothing(attempt, now)

    def _learn_answer(self, latency_s: float, attempt: _Attempt, now: float) -> None:
        self._answered_at = now
        self.prediction.observe(latency_s, now)
        self.limit.finished(latency_s, attempt[1], now)
        if self._is_news(attempt):
            self.health.answered(now)

    def _learn_failure(self, retry_after_s: float | None, attempt: _Attempt, now: float) -> None:
        self.prediction.penalise(retry_after_s, now)
        self._count_failure(attempt, now)

    def _count_failure(self, attempt: _Attempt, now: float) -> None:
        self.limit.failed(now)
        if self._is_news(attempt):
            self.health.failed(now)
            if self.health.failing:
                # Not ejected, for the pool cannot spare it; but all that wait would fail there one after the other.
                self.prediction.hold(now + _BETWEEN_FAILURES_S)

    def _learn_nothing(self, attempt: _Attempt, now: float) -> None:
        if self._is_news(attempt):
            self.health.undecided(now)

    def _is_news(self, attempt: _Attempt) -> bool:
        """Whether it was sent after the last change of state, and so tells of the endpoint as it is now."""
        return attempt[0] >= self.health.since


def _nearest(attempts: list[_Attempt], taken: float) -> tuple[int, float]:
    """Which one was taken at this instant, and how far off it is: the instant is known to a rounding error only."""
    after = bisect_left(attempts, (taken, 0))
    off_after = attempts[after][0] - taken if after < len(attempts) else inf
    off_before = taken - attempts[after - 1][0] if after else inf
    return (after, off_after) if off_after <= off_before else (after - 1, off_before)
