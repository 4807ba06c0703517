"""The fit and the verdicts of scaling.py: pure functions of numbers, each rule in one place.

Quality is a distance here (fd_cifar10, pair_l1): lower is better. One number a seed.

Letters: N points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

HOLDS = "holds"
FAILS = "does not hold"
UNDECIDED = "not decided: within the seeds' spread"
TOO_FEW = "not decided: it needs two seeds of each"
MISSING = "not measured yet"
NEEDS_GPU = "cannot be tested without a GPU"

MARGIN = 0.05  # costs that differ by less are called equal
LEAST_GAIN = 0.01  # of the distance, for more iterations to count as better
LEAST_POINTS = 4  # of a fit, to be judged
LEAST_R2 = 0.9  # of a fit in logarithms, to be called a power law

Point = tuple[float, float]


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor * x ** exponent``, fitted to N points by least squares in logarithms.

    Attributes:
        factor: y at x = 1.
        exponent: of x.
        error: standard error of the exponent, from the scatter of the points; NaN for two points.
        r2: share of the variance of log y that the line explains.
        points: N.
    """

    factor: float
    exponent: float
    error: float
    r2: float
    points: int

    def at(self, x: float) -> float:
        return self.factor * x**self.exponent


def fit_power_law(points: Sequence[Point]) -> PowerLaw:
    """Fit a line through ``(log x, log y)``.

    Raises:
        ValueError: fewer than two different x, or a number that is not positive and finite.
    """
    if any(not 0 < value < math.inf for point in points for value in point):
        raise ValueError(f"a power law is fitted to positive, finite numbers, got {points}")
    if len({x for x, _ in points}) < 2:
        raise ValueError(f"a power law needs two different x, got {points}")
    xs, ys = ([math.log(value) for value in side] for side in zip(*points, strict=True))
    count = len(points)
    middle, level = math.fsum(xs) / count, math.fsum(ys) / count
    sxx = math.fsum((x - middle) ** 2 for x in xs)
    sxy = math.fsum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True))
    syy = math.fsum((y - level) ** 2 for y in ys)
    slope = sxy / sxx
    start = level - slope * middle
    left = math.fsum((y - start - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return PowerLaw(
        factor=math.exp(start),
        exponent=slope,
        error=math.sqrt(left / (count - 2) / sxx) if count > 2 else math.nan,
        r2=1 - left / syy if syy else 1.0,
        points=count,
    )


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats: lower than all that cost as little; by rising cost."""
    best: list[Point] = []
    for cost, value in sorted(points):
        if not best or value < best[-1][1]:
            best.append((cost, value))
    return best


def value_at(curve: Sequence[Point], x: float) -> float | None:
    """Read a curve at x, straight between its points in logarithms; None outside of them."""
    ordered = sorted(curve)
    for (x0, y0), (x1, y1) in pairwise(ordered):
        if x0 <= x <= x1:
            share = math.log(x / x0) / math.log(x1 / x0) if x1 > x0 else 0.0
            return y0 * (y1 / y0) ** share
    return None


def apart(low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether each seed of ``low`` lies below each of ``high``: a difference beyond the spread."""
    return max(low) < min(high)


def better(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Claim: ours is lower. Decided if the seeds of the two do not overlap."""
    if not (ours and theirs):
        return MISSING
    if min(len(ours), len(theirs)) < 2:
        return TOO_FEW
    if apart(ours, theirs):
        return HOLDS
    return FAILS if apart(theirs, ours) else UNDECIDED


def matches(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Claim: ours is no higher. It fails only if each of our seeds is above each of theirs."""
    verdict = better(ours, theirs)
    return HOLDS if verdict == UNDECIDED else verdict


def gains(before: Sequence[float], after: Sequence[float]) -> str:
    """Claim: the same seeds get better by more than LEAST_GAIN, each of them."""
    if not before or len(before) != len(after):
        return MISSING
    if len(before) < 2:
        return TOO_FEW
    enough = [new < (1 - LEAST_GAIN) * old for old, new in zip(before, after, strict=True)]
    return HOLDS if all(enough) else UNDECIDED if any(enough) else FAILS


def cheaper(ours: float | None, theirs: float | None) -> str:
    """Claim: ours costs less, by more than MARGIN."""
    if ours is None or theirs is None:
        return MISSING
    if ours < (1 - MARGIN) * theirs:
        return HOLDS
    return FAILS if ours > (1 + MARGIN) * theirs else f"not decided: within {MARGIN:.0%}"


def follows_power_law(fit: PowerLaw | None) -> str:
    """Claim: a falling power law. It takes four points, LEAST_R2 and a slope beyond two errors."""
    if fit is None:
        return MISSING
    if fit.points < LEAST_POINTS:
        return f"not decided: fewer than {LEAST_POINTS} points"
    return HOLDS if fit.r2 >= LEAST_R2 and fit.exponent + 2 * fit.error < 0 else FAILS
