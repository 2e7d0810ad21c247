# SPDX-License-Identifier: Apache-2.0
"""A line plot as SVG text: axes, a legend, nothing to install."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

__all__ = ["Axis", "line_plot"]

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48
# Okabe and Ito's: told apart by colour-blind eyes, too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "", "6 3", "2 3")
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


class Axis:
    """From values to pixels; logarithmic where asked for."""

    def __init__(self, title: str, *, logarithmic: bool = False, least: float | None = None) -> None:
        self.title = title
        self._logarithmic = logarithmic
        self._least = least
        self._low, self._high = 0.0, 1.0

    def fit(self, values: Sequence[float]) -> None:
        """Show all of them."""
        shown = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low = min(shown) if self._least is None else self._least
        high = max(shown)
        if self._logarithmic:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        self._low, self._high = low, high if high > low else low + 1.0

    def part(self, value: float) -> float:
        """0..1 along the axis."""
        if self._logarithmic:
            low = math.log10(self._low)
            return (math.log10(max(value, self._low)) - low) / (math.log10(self._high) - low)
        return (value - self._low) / (self._high - self._low)

    def ticks(self) -> list[float]:
        """Round values, some five of them."""
        if self._logarithmic:
            first, last = round(math.log10(self._low)), round(math.log10(self._high))
            return [10.0**power for power in range(first, last + 1)]
        wide = (self._high - self._low) / 5
        power = 10 ** math.floor(math.log10(wide))
        step = next(power * each for each in _STEPS if power * each >= wide)
        first = math.ceil(self._low / step - 1e-9)
        return [index * step for index in range(first, int(self._high / step + 1e-9) + 1)]


def line_plot(
    title: str, across: Axis, up: Axis, lines: Mapping[str, Sequence[tuple[float, float]]], *, dots: bool = True
) -> str:
    """Lines by name, each through (x, y)."""
    across.fit([x for points in lines.values() for x, _ in points])
    up.fit([y for points in lines.values() for _, y in points])
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + across.part(value) * wide

    def y_of(value: float) -> float:
        return _TOP + (1 - up.part(value)) * high

    parts = [_text(_WIDTH / 2, 18, title, size=14)]
    parts += [_text(x_of(tick), _HEIGHT - _BOTTOM + 16, f"{tick:g}") for tick in across.ticks()]
    for tick in up.ticks():
        y = y_of(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{wide}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
    parts.append(_text(_LEFT + wide / 2, _HEIGHT - 10, across.title))
    middle = _TOP + high / 2
    parts.append(f'<g transform="rotate(-90 14 {middle:.0f})">{_text(14, middle, up.title)}</g>')
    parts.append(f'<path d="M{_LEFT} {_TOP}v{high}h{wide}" stroke="#333" fill="none"/>')
    for place, (name, points) in enumerate(lines.items()):
        pixels = [(x_of(x), y_of(y)) for x, y in points if math.isfinite(y)]
        parts += _line(name, place, pixels, dots=dots)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">'
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    return "\n".join((head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>", ""))


def _line(name: str, place: int, pixels: Sequence[tuple[float, float]], *, dots: bool) -> list[str]:
    colour, dash = _COLOURS[place % len(_COLOURS)], _DASHES[place % len(_DASHES)]
    stroke = f'stroke="{colour}" stroke-width="2" fill="none"' + (f' stroke-dasharray="{dash}"' if dash else "")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    parts = [f'<polyline points="{path}" {stroke}/>']
    if dots:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in pixels]
    y = _TOP + 10 + 16 * place
    parts.append(f'<path d="M{_LEFT + 10} {y}h24" {stroke}/>')
    parts.append(_text(_LEFT + 40, y + 4, name, anchor="start"))
    return parts


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
