"""examples/comparison/rules.py: the fit and the verdicts, on numbers whose answers are known."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

number = st.floats(1e-3, 1e3)
fixed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def rules(examples: Path) -> ModuleType:
    return importlib.import_module("comparison.rules")


@fixed
@given(st.floats(-3, 3), number, st.sets(st.integers(-20, 20), min_size=2, max_size=9))
def test_the_fit_recovers_a_power_law(
    rules: ModuleType, exponent: float, factor: float, places: set[int]
) -> None:
    points = [(2.0**place, factor * 2.0 ** (place * exponent)) for place in places]
    law = rules.fit_power_law(points)
    assert math.isclose(law.exponent, exponent, abs_tol=1e-9)
    assert math.isclose(law.factor, factor, rel_tol=1e-9)
    assert law.points == len(places)
    for x, y in points:
        assert math.isclose(law.at(x), y, rel_tol=1e-9)


def test_scatter_is_told_as_numpy_tells_it(rules: ModuleType) -> None:
    generator = np.random.default_rng(0)
    x = np.logspace(0, 3, 12)
    y = 70 * x**-0.2 * np.exp(0.1 * generator.standard_normal(12))
    law = rules.fit_power_law(list(zip(x.tolist(), y.tolist(), strict=True)))
    line, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert math.isclose(law.exponent, line[0], rel_tol=1e-9)
    assert math.isclose(law.error, math.sqrt(covariance[0, 0]), rel_tol=1e-9)
    assert math.isclose(law.r2, np.corrcoef(np.log(x), np.log(y))[0, 1] ** 2, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1.0, 2.0)], "two different x"),
        ([(1.0, 2.0), (1.0, 3.0)], "two different x"),
        ([(1.0, 2.0), (2.0, 0.0)], "positive, finite"),
        ([(1.0, 2.0), (2.0, math.nan)], "positive, finite"),
        ([(1.0, 2.0), (math.inf, 1.0)], "positive, finite"),
    ],
)
def test_what_has_no_power_law_is_refused(
    rules: ModuleType, points: list[tuple[float, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rules.fit_power_law(points)


@fixed
@given(st.lists(st.tuples(number, number), max_size=12))
def test_no_point_lies_below_the_frontier(
    rules: ModuleType, points: list[tuple[float, float]]
) -> None:
    best = rules.frontier(points)
    assert set(best) <= set(points)
    costs, values = ([point[side] for point in best] for side in (0, 1))
    assert costs == sorted(set(costs)) and values == sorted(set(values), reverse=True)
    for cost, value in points:
        assert any(c <= cost and v <= value for c, v in best)


def test_a_curve_is_read_straight_in_logarithms(rules: ModuleType) -> None:
    curve = [(4.0, 5.0), (1.0, 10.0)]
    assert math.isclose(rules.value_at(curve, 2.0), math.sqrt(50))
    assert rules.value_at(curve, 1.0) == 10 and math.isclose(rules.value_at(curve, 4.0), 5)
    assert rules.value_at(curve, 0.9) is None and rules.value_at(curve, 4.1) is None
    assert rules.value_at([], 1.0) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "matches"),
    [
        ((1.0, 1.2, 1.1), (1.3, 1.5, 1.4), "HOLDS", "HOLDS"),
        ((1.0, 1.2, 1.1), (1.2, 1.5, 1.4), "UNDECIDED", "HOLDS"),
        ((1.0, 1.4), (1.2, 1.3), "UNDECIDED", "HOLDS"),
        ((1.3, 1.4), (1.2, 1.1), "FAILS", "FAILS"),
        ((1.0,), (2.0, 2.1), "TOO_FEW", "TOO_FEW"),
        ((2.0,), (1.0,), "TOO_FEW", "TOO_FEW"),
        ((), (1.0, 1.1), "MISSING", "MISSING"),
        ((1.0, 1.1), (), "MISSING", "MISSING"),
    ],
)
def test_a_difference_counts_beyond_the_spread_of_seeds(
    rules: ModuleType, ours: tuple[float], theirs: tuple[float], better: str, matches: str
) -> None:
    assert rules.better(ours, theirs) == getattr(rules, better)
    assert rules.matches(ours, theirs) == getattr(rules, matches)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((10.0, 20.0), (9.8, 19.7), "HOLDS"),
        ((10.0, 20.0), (9.8, 19.9), "UNDECIDED"),
        ((10.0, 20.0), (9.95, 20.0), "FAILS"),
        ((10.0, 20.0), (11.0, 21.0), "FAILS"),
        ((10.0,), (5.0,), "TOO_FEW"),
        ((), (), "MISSING"),
        ((1.0, 2.0), (1.0,), "MISSING"),
    ],
)
def test_a_gain_is_one_of_every_seed(
    rules: ModuleType, before: tuple[float], after: tuple[float], verdict: str
) -> None:
    assert rules.gains(before, after) == getattr(rules, verdict)


def test_costs_within_the_margin_are_not_told_apart(rules: ModuleType) -> None:
    assert rules.cheaper(94.0, 100.0) == rules.HOLDS
    assert rules.cheaper(106.0, 100.0) == rules.FAILS
    assert rules.cheaper(104.0, 100.0) == rules.cheaper(96.0, 100.0) == "not decided: within 5%"
    assert rules.cheaper(None, 1.0) == rules.cheaper(1.0, None) == rules.MISSING


def test_a_power_law_falls_beyond_its_error(rules: ModuleType) -> None:
    def verdict(*values: float) -> str:
        points = [(2.0**place, value) for place, value in enumerate(values)]
        return str(rules.follows_power_law(rules.fit_power_law(points)))

    assert verdict(8, 4, 2, 1) == rules.HOLDS
    assert verdict(1, 2, 4, 8) == rules.FAILS
    assert verdict(8, 2, 6, 1) == rules.FAILS  # falls, but is no line
    assert verdict(8, 4, 2) == "not decided: fewer than 4 points"
    assert rules.follows_power_law(None) == rules.MISSING
