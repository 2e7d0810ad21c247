# SPDX-License-Identifier: Apache-2.0
"""Metrics of many processes as those of one gateway. Pure.

What only grows is summed and never falls: what a worker had counted when it died, or did not answer, stays in the sum.
Gauges are of those that answered now, each by the rule that its owner gave it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from proxy.telemetry.families import Exported

__all__ = ["MOST_SERIES", "HandedTotals", "Totals"]

MOST_SERIES = 16_384
"""Of workers that are gone, more are kept only where a living one has the same."""

_Labels = tuple[str, ...]
_Values = tuple[float, ...]
_Series = tuple[str, _Labels]
_Shape = tuple[str, _Labels, _Values]


class HandedTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What another program needs to go on counting."""

    last: dict[str, list[tuple[str, tuple[str, ...], tuple[float, ...]]]]
    gone: list[tuple[str, tuple[str, ...], tuple[float, ...]]]
    shapes: list[Exported]


class Totals:
    """What every process has counted since the first of them began."""

    def __init__(self, *, most: int = MOST_SERIES) -> None:
        self._most = most
        self._last: dict[str, dict[_Series, _Values]] = {}
        """What each living source has counted, as it said last."""
        self._gone: dict[_Series, _Values] = {}
        """What the others had counted."""
        self._shapes: dict[str, Exported] = {}

    def __repr__(self) -> str:
        return f"<Totals of {len(self._last)} sources, {len(self._gone)} series of those that are gone>"

    def handed(self) -> HandedTotals:
        """For another program."""
        return HandedTotals(
            last={source: _listed(series) for source, series in self._last.items()},
            gone=_listed(self._gone),
            shapes=list(self._shapes.values()),
        )

    def adopt(self, handed: HandedTotals) -> None:
        """What another program has counted up to now."""
        self._last = {source: _mapped(series) for source, series in handed.last.items()}
        self._gone = _mapped(handed.gone)
        self._shapes = {each.name: each for each in handed.shapes}

    def page(self, told: Mapping[str, Sequence[Exported]], present: Collection[str] | None = None) -> list[Exported]:
        """Everything as one, in the order in which it is first told.

        told: what each source said now; where they differ about what a metric is, the first is believed. present: those
        that live, whether or not they said something; default: those that did.
        """
        alive = told.keys() if present is None else {*told.keys(), *present}
        for source in self._last.keys() - alive:
            self.depart(source)
        shapes = _shapes(told.values())
        self._shapes = shapes | {name: each for name, each in self._shapes.items() if name not in shapes}
        for source, exports in told.items():
            self.hear(source, exports)
        return self._page([_agreeing(exports, self._shapes) for exports in told.values()])

    def hear(self, source: str, exports: Iterable[Exported]) -> None:
        """What one has counted by now."""
        exports = _agreeing(exports, self._shapes)
        now = {
            (each.name, labels): values for each in exports if each.kind != "gauge" for labels, values in each.samples
        }
        before, self._last[source] = self._last.get(source, {}), now
        for series, values in before.items():
            after = now.get(series)
            if after is None:
                self._forgotten(series, values)
            elif any(new < old for new, old in zip(after, values, strict=True)):
                self._keep(series, values)  # it began anew

    def depart(self, source: str) -> None:
        """One is gone, however: what it had counted when it last said so stays in the sums."""
        for series, values in self._last.pop(source, {}).items():
            self._keep(series, values)
        if len(self._gone) > self._most:
            self._gone = {
                series: values
                for series, values in self._gone.items()
                if any(series in last for last in self._last.values())
            }

    def _forgotten(self, series: _Series, values: _Values) -> None:
        """A process forgets a series whose endpoint is gone; once the last has done so it is gone here, too."""
        if any(series in last for last in self._last.values()):
            self._keep(series, values)
        else:
            self._gone.pop(series, None)

    def _keep(self, series: _Series, values: _Values) -> None:
        known = self._gone.get(series)
        self._gone[series] = values if known is None or len(known) != len(values) else _sum([known, values])

    def _page(self, told: Sequence[Sequence[Exported]]) -> list[Exported]:
        counted: dict[str, dict[_Labels, list[_Values]]] = {}
        for last in (*self._last.values(), self._gone):
            for (name, labels), values in last.items():
                counted.setdefault(name, {}).setdefault(labels, []).append(values)
        seen = _gauges(told)
        made = []
        for name, shape in self._shapes.items():
            samples: list[tuple[_Labels, _Values]]
            if shape.kind == "gauge":
                samples = [(labels, (_across(shape.across, values),)) for labels, values in seen.get(name, {}).items()]
            else:
                samples = [(labels, _sum(values)) for labels, values in counted.get(name, {}).items()]
            made.append(_with(shape, samples))
        return made


def _listed(series: Mapping[_Series, _Values]) -> list[tuple[str, _Labels, _Values]]:
    return [(name, labels, values) for (name, labels), values in series.items()]


def _mapped(series: Iterable[tuple[str, _Labels, _Values]]) -> dict[_Series, _Values]:
    return {(name, labels): values for name, labels, values in series}


def _shapes(told: Iterable[Sequence[Exported]]) -> dict[str, Exported]:
    found: dict[str, Exported] = {}
    for exports in told:
        for each in exports:
            found.setdefault(each.name, _with(each, ()))
    return found


def _agreeing(exports: Iterable[Exported], shapes: Mapping[str, Exported]) -> list[Exported]:
    """Those that are what they are elsewhere: two versions may run side by side during an upgrade."""
    return [each for each in exports if _shape(each) == _shape(shapes.get(each.name, each))]


def _shape(one: Exported) -> _Shape:
    return one.kind, one.labels, one.bounds


def _gauges(told: Iterable[Iterable[Exported]]) -> dict[str, dict[_Labels, list[float]]]:
    seen: dict[str, dict[_Labels, list[float]]] = {}
    for exports in told:
        for each in exports:
            if each.kind == "gauge":
                of = seen.setdefault(each.name, {})
                for labels, (value,) in each.samples:
                    of.setdefault(labels, []).append(value)
    return seen


def _across(rule: str, values: Sequence[float]) -> float:
    match rule:
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "mean":
            return sum(values) / len(values)
        case _:
            return sum(values)


def _sum(values: Sequence[_Values]) -> _Values:
    """Of series of one shape, place by place; what another shape had counted before an upgrade is left out."""
    return tuple(map(sum, zip(*(each for each in values if len(each) == len(values[0])), strict=True)))


def _with(shape: Exported, samples: Sequence[tuple[_Labels, _Values]]) -> Exported:
    return Exported(shape.name, shape.help, shape.kind, shape.across, shape.labels, samples, shape.bounds)
