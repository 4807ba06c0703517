"""Line plots as SVG that takes its colours from the page: no script, no font, a few kilobytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 400, 232
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 380, 34, 206
_CHARACTER = 8  # width of one in a label, at most
_MOST_TICKS = 5
_FLAT = 1e-6  # relative range of values that are drawn as one
_MOST_DIGITS = 9


def curve_svg(title: str, points: Sequence[tuple[float, float]], *, log: bool = False) -> str:
    """One curve over the images seen.

    Args:
        title: written above it.
        points: ``(images, value)``; those that are not finite are left out.
        log: logarithmic values, where all are positive.

    Returns:
        An ``<svg>`` element, whose line is of the CSS colour ``--accent``.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    log = log and all(y > 0 for _, y in finite)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="4" y="16">{escape(title)}{" (log)" if log else ""}</text>',
    ]
    if not finite:
        return "".join([*parts, '<text x="4" y="40">nothing to show yet</text></svg>'])
    xs, ys = zip(*finite, strict=True)
    up = _Axis(min(ys), max(ys), _BOTTOM, _TOP, log=log)
    heights = up.labels()
    left = max(_LEFT, round(_CHARACTER * max((len(text) for _, text in heights), default=0)) + 10)
    across = _Axis(min(0.0, *xs), max(xs), left, _RIGHT)
    for value, text in across.labels():
        x = across.place(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" class="x">{text}</text>')
    for value, text in heights:
        y = up.place(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" class="y">{text}</text>')
    places = [(across.place(x), up.place(y)) for x, y in finite]
    if len(places) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="curve" points="{line}"/>')
    x, y = places[-1]
    parts.append(f'<circle class="last" cx="{x:.1f}" cy="{y:.1f}" r="3"/></svg>')
    return "".join(parts)


def short(value: float, digits: int = 3) -> str:
    """A number in few characters: 0.0123, 1.5k, 20M, 3e-07."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= abs(value) < 1e12:
            return f"{value / unit:.{digits}g}{name}"
    return f"{value:.{digits}g}"


class _Axis:
    """Values from ``low`` to ``high`` along the pixels from ``start`` to ``stop``."""

    def __init__(
        self, low: float, high: float, start: float, stop: float, *, log: bool = False
    ) -> None:
        if high - low <= _FLAT * max(abs(low), abs(high)):
            room = abs(low) / 2 or 1.0
            low, high = low - room, high + room
        self.low, self.high, self.start, self.stop, self.log = low, high, start, stop, log
        self._scale: Callable[[float], float] = math.log if log else float

    def place(self, value: float) -> float:
        low, high = self._scale(self.low), self._scale(self.high)
        return self.start + (self.stop - self.start) * (self._scale(value) - low) / (high - low)

    def labels(self) -> list[tuple[float, str]]:
        """The ticks, each with as many digits as tell it from its neighbours."""
        ticks = self.ticks()
        near = min((b - a for a, b in pairwise(ticks)), default=math.inf) / 1000
        for digits in range(3, _MOST_DIGITS + 1):
            if all(abs(float(f"{value:.{digits}g}") - value) <= near for value in ticks):
                break
        return [(value, short(value, digits)) for value in ticks]

    def ticks(self) -> list[float]:
        """A few round values."""
        if self.log:
            exponents = range(
                math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
            )
            for digits in ((1, 2, 5), (1, 3), (1,)):
                found = self._within([d * 10.0**e for e in exponents for d in digits])
                if 2 <= len(found) <= _MOST_TICKS + 1:
                    return found
            if len(found) > 2:
                return found[:: math.ceil(len(found) / _MOST_TICKS)]
        rough = (self.high - self.low) / _MOST_TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(d * power for d in (1, 2, 5, 10) if d * power >= rough)
        first = math.ceil(self.low / step)
        return self._within([n * step for n in range(first, first + 2 * _MOST_TICKS)])

    def _within(self, values: list[float]) -> list[float]:
        return [value for value in values if self.low <= value <= self.high]
