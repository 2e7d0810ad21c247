# SPDX-License-Identifier: Apache-2.0
"""How soon an endpoint will probably answer: a peak-sensitive average of what it took, and penalties for failures.

The average is Finagle's and Linkerd's peak EWMA: up at once on a slower answer, down with time. A failure is never
counted as fast as it came (a server that fails in a millisecond would attract everything: linkerd2#11669) but as a
penalty of seconds.
"""

from __future__ import annotations

from math import exp

__all__ = ["DECAY_S", "LEAST_PENALTY_S", "MOST_RETRY_AFTER_S", "Prediction"]

DECAY_S = 10.0
"""Time constant of forgetting, seconds: Finagle's and Linkerd's."""
LEAST_PENALTY_S = 5.0
"""What a failure counts as, whatever it asked for (linkerd2-proxy's PenaltyPeakEwma)."""
MOST_RETRY_AFTER_S = 300.0
"""A server that asks for more is not believed (linkerd2-proxy)."""


class Prediction:
    """What one endpoint's answers took, seconds from dispatch to first byte.

    decay_s: time constant in which a peak, and the memory of an endpoint that nobody asks, fade.
    """

    __slots__ = ("_answers", "_at", "_decay_s", "_peak", "_penalty", "_told_at", "_usual", "held_until")

    def __init__(self, *, decay_s: float = DECAY_S) -> None:
        self._decay_s = decay_s
        self._peak = 0.0
        self._at: float | None = None
        self._usual: float | None = None
        self._answers: float | None = None
        self._penalty = 0.0
        self._told_at = float("-inf")
        self.held_until = float("-inf")
        """Monotonic seconds until which others go before it, busy or not; its penalty fades from there on."""

    def __repr__(self) -> str:
        known = "nothing known" if self._usual is None else f"usually {self._usual * 1e3:.3g} ms"
        return f"<Prediction {known}, peak {self._peak * 1e3:.3g} ms, penalty {self._penalty:.3g} s>"

    @property
    def usual(self) -> float | None:
        """A plain moving average of its answers, which does not fade with time; None before the first answer."""
        return self._usual

    @property
    def answers(self) -> float | None:
        """The same, and what was given up is not in it: an endpoint that hangs must not come to look like one that is
        merely slow."""
        return self._answers

    def old(self, now: float) -> bool:
        """Whether nothing was heard for so long that the averages tell of another time: the next answer begins them
        anew."""
        return now - self._told_at > self._decay_s

    def observe(self, seconds: float, now: float) -> None:
        """A good answer took this long. One that was asked for after a failure halves what the failure left."""
        old = self.old(now - seconds)
        self._told_at = now
        self._usual = seconds if self._usual is None or old else self._usual + (seconds - self._usual) * _PER_ANSWER
        self._answers = (
            seconds if self._answers is None or old else self._answers + (seconds - self._answers) * _PER_ANSWER
        )
        if self._at is None or seconds >= self._peak:
            self._peak = seconds
        else:
            self._peak = seconds + (self._peak - seconds) * self._kept(self._at, now)
        self._at = now
        if self._penalty and now - seconds >= self.held_until:
            self._penalty = self._penalty / 2 if self._penalty > _LEAST_LEFT_S else 0.0

    def at_least(self, seconds: float, now: float) -> None:
        """An attempt was given up after so long without an answer: it would have taken more."""
        self._told_at = now
        if seconds > (self.seconds(now) or 0.0):
            self._peak = seconds
            self._at = now
        if self._usual is not None and seconds > self._usual:
            self._usual += (seconds - self._usual) * _PER_ANSWER

    def penalise(self, retry_after_s: float | None, now: float) -> None:
        """An attempt failed; `retry_after_s` as the endpoint asked for. It is penalised in full until then, and less
        with time from there on. An earlier, longer wish stands."""
        self._told_at = now
        asked = min(max(retry_after_s or 0.0, 0.0), MOST_RETRY_AFTER_S)
        self._penalty = max(asked, LEAST_PENALTY_S, self._penalty_left(now))
        self.held_until = max(now + asked, self.held_until)

    def hold(self, until: float) -> None:
        """It shall not be asked before, as if it had asked for that itself. Monotonic seconds."""
        self.held_until = max(self.held_until, until)

    def penalised(self, now: float) -> bool:
        """Whether a failure still weighs more than what its answers take."""
        if not self._penalty:
            return False
        left = self._penalty_left(now)
        return left > _LEAST_LEFT_S and (self._at is None or left > self._peak * self._kept(self._at, now))

    def seconds(self, now: float) -> float | None:
        """Until the first byte, if it is asked now; None: nothing is known of it."""
        if self._at is None:
            known = None
        else:
            known = self._peak * exp((self._at - now) / self._decay_s) if now > self._at else self._peak
        if self._penalty:
            left = self._penalty_left(now)
            if left > _LEAST_LEFT_S:
                return left if known is None or left > known else known
        return known

    def _kept(self, since: float, now: float) -> float:
        return exp((since - now) / self._decay_s) if now > since else 1.0

    def _penalty_left(self, now: float) -> float:
        return self._penalty * self._kept(self.held_until, now) if self._penalty else 0.0


_PER_ANSWER = 0.1
"""Weight of one answer in the plain average: the last twenty or so count."""
_LEAST_LEFT_S = 1e-3
"""A penalty that has faded to this is over: Linkerd's own smallest measure of latency is a millisecond."""
