# SPDX-License-Identifier: Apache-2.0
"""How each class's promise was spent in the last minutes, and which part broke it. Pure: the caller brings the time.

A request is one append here, of its timeline; everything else is worked out when somebody asks. Of each half minute
every n-th request is kept, n doubling when there are too many, so counts are exact and times are a fair sample.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import itemgetter
from typing import Protocol

from inferlane.errors import Reason
from qos.advice import advice
from qos.promise import HURRIED, LATE, MISSED, PLACES, REFUSED, Breach, Part, Promise, Refusals, Report, Spent, spent
from qos.record import Record, Sample, Sampled, Slice
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

__all__ = ["KEPT_SHARE", "WINDOW_S", "Diagnosis", "Finished", "judged", "quantiles", "report"]

WINDOW_S = 300.0
"""A report is about so many seconds: what an admin who was called still finds."""
KEPT_SHARE = 0.999
"""A promise holds while so many of the requests are answered in time."""
_SLICE_S = 30.0
# A client that says what is left of the class's own time means the class's deadline.
_SHORTER = 0.9
_OK, _QUEUE_TIMEOUT, _TOO_LATE = "ok", Reason.QUEUE_TIMEOUT.label, Reason.TOO_LATE.label


class Finished(Protocol):
    """What is known of a finished request besides its times."""

    @property
    def traffic_class(self) -> TrafficClass: ...
    @property
    def pool(self) -> str: ...
    @property
    def deadline(self) -> float:
        """Monotonic seconds: the class's, or the client's shorter one."""
        ...

    @property
    def streaming(self) -> bool: ...


@dataclass(slots=True)
class _Watch:
    """One class in one pool."""

    traffic_class: TrafficClass
    slices: deque[Slice] = field(default_factory=lambda: deque(maxlen=round(WINDOW_S / _SLICE_S) + 1))


class Diagnosis:
    """What happened to the promises of one gateway. Its size is bounded by classes times pools."""

    def __init__(self) -> None:
        self._watches: dict[tuple[str, str], _Watch] = {}

    def __repr__(self) -> str:
        return f"<Diagnosis of {len(self._watches)} promises>"

    def observe(self, finished: Finished, timeline: Timeline, reason: str) -> None:
        """A request is over; nobody changes its timeline any more. reason: ok, or a Reason's label."""
        now = timeline.received if timeline.finished is None else timeline.finished
        traffic_class = finished.traffic_class
        key = (traffic_class.name, finished.pool)
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(traffic_class)
        watch.traffic_class = traffic_class
        if not watch.slices or now >= watch.slices[-1].ends:
            watch.slices.append(Slice(now + _SLICE_S))
        current = watch.slices[-1]
        if reason == _OK and _late(finished, timeline, now):
            reason = LATE
        if reason == _OK:
            seen = current.kept
        else:
            if reason in MISSED and reason != _QUEUE_TIMEOUT and _hurried(finished, timeline):
                reason = HURRIED
            current.reasons[reason] = current.reasons.get(reason, 0) + 1
            if reason not in MISSED:
                return
            seen = current.missed
        seen.count += 1
        if not seen.count % seen.stride:
            seen.keep(Sample(timeline, finished.streaming, reason))

    def promises(self, now: float) -> Iterator[Promise]:
        """One by one, by rank and pool, about the window that ends now: each costs some milliseconds."""
        yield from map(judged, self.records(now))

    def records(self, now: float) -> Iterator[Record]:
        """What they are judged by, in the same order; it stays the diagnosis's own."""
        watches = sorted(self._watches.items(), key=lambda each: (each[1].traffic_class.rank, each[0]))
        for (_, pool), watch in watches:
            slices = [each for each in watch.slices if each.ends > now - WINDOW_S]
            if slices:
                of = watch.traffic_class
                yield Record(of.name, of.rank, of.deadline_s, pool, slices)


def report(promises: Sequence[Promise], silent: Sequence[str] = ()) -> Report:
    """All of them as one. silent: the workers that were asked for their part and did not tell it."""
    return Report(window_s=WINDOW_S, holds=all(each.holds for each in promises), promises=promises, silent=list(silent))


def _late(finished: Finished, timeline: Timeline, now: float) -> bool:
    until = timeline.first_byte if finished.streaming else now
    return until is not None and until > finished.deadline


def _hurried(finished: Finished, timeline: Timeline) -> bool:
    return finished.deadline - timeline.received < finished.traffic_class.deadline_s * _SHORTER


def judged(record: Record) -> Promise:
    """How one promise stands: some milliseconds of work."""
    slices = record.slices
    reasons: Counter[str] = Counter()
    for each in slices:
        reasons.update(each.reasons)
    kept, missed = sum(each.kept.count for each in slices), sum(each.missed.count for each in slices)
    refused = sum(reasons[each] for each in REFUSED)
    in_time = _times(each.kept for each in slices)
    late = _times(each.missed for each in slices)
    everybody = [(weight, took) for weight, _, took in (*in_time, *late)]
    parts = _parts(everybody)
    promise = Promise(
        traffic_class=record.traffic_class,
        pool=record.pool,
        deadline_s=record.deadline_s,
        kept=kept,
        missed=missed,
        refused=refused,
        holds=missed + refused <= (1 - KEPT_SHARE) * (kept + missed + refused),
        whole=_whole(everybody),
        parts=parts,
        breaches=_breaches(in_time, late, parts, record.deadline_s),
        refusals=[
            Refusals(reason=reason, place=PLACES.get(reason, "client"), count=count)
            for reason, count in reasons.most_common()
        ],
    )
    return replace(promise, words=advice(promise))


_Times = list[tuple[int, str, dict[Part, float]]]
"""Of a sample: how many requests it stands for, its reason, its parts."""


def _times(sampled: Iterable[Sampled]) -> _Times:
    return [
        (many.stride, each.reason, spent(each.timeline, streaming=each.streaming))
        for many in sampled
        for each in many.samples
    ]


def _whole(everybody: Sequence[tuple[int, dict[Part, float]]]) -> Spent | None:
    totals = [(sum(took.values()) - took.get(Part.NETWORK, 0.0), weight) for weight, took in everybody]
    return _spent(totals, 1.0) if totals else None


def _parts(everybody: Sequence[tuple[int, dict[Part, float]]]) -> dict[Part, Spent]:
    total = sum(weight * sum(took.values()) for weight, took in everybody) or 1.0
    found = {}
    for part in Part:
        values = [(took[part], weight) for weight, took in everybody if part in took]
        if values:
            found[part] = _spent(values, sum(value * weight for value, weight in values) / total)
    return found


def _spent(values: Sequence[tuple[float, int]], share: float) -> Spent:
    median_s, p99_s = quantiles(values, 0.5, 0.99)
    return Spent(median_s=median_s, p99_s=p99_s, share=share)


def _breaches(in_time: _Times, late: _Times, expected: Mapping[Part, Spent], deadline_s: float) -> list[Breach]:
    """Each late request is put down to the part that took most beyond what it usually takes.

    Where the usual parts alone fill the deadline, it is the longest of them. What a request that was turned away had
    still before it is what everybody can expect.
    """
    usual = _medians(in_time)
    ahead = {part: each.median_s for part, each in expected.items()}
    too_slow = sum(usual.values()) >= deadline_s
    blamed: defaultdict[Part, list[tuple[float, int]]] = defaultdict(list)
    for weight, reason, took in late:
        whole = ahead | took if reason == _TOO_LATE else took
        if not whole:
            continue
        beyond = whole if too_slow else {part: seconds - usual.get(part, 0.0) for part, seconds in whole.items()}
        worst = max(beyond, key=beyond.__getitem__)
        blamed[worst].append((whole[worst], weight))
    all_of_them = sum(weight for values in blamed.values() for _, weight in values)
    breaches = [
        Breach(
            part=part,
            share=sum(weight for _, weight in values) / all_of_them,
            median_s=quantiles(values, 0.5)[0],
            usual_s=usual.get(part, 0.0),
        )
        for part, values in blamed.items()
    ]
    return sorted(breaches, key=lambda each: -each.share)


def _medians(times: _Times) -> dict[Part, float]:
    values: defaultdict[Part, list[tuple[float, int]]] = defaultdict(list)
    for weight, _, took in times:
        for part, seconds in took.items():
            values[part].append((seconds, weight))
    return {part: quantiles(each, 0.5)[0] for part, each in values.items()}


def quantiles(values: Sequence[tuple[float, int]], *shares: float) -> list[float]:
    """For each share 0..1 the least value that at least this part of all weight does not exceed.

    values: each with its weight, one at least.
    """
    ordered = sorted(values)
    weights = list(accumulate(map(itemgetter(1), ordered)))
    return [ordered[bisect_left(weights, share * weights[-1])][0] for share in shares]
