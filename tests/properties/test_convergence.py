"""Drawn problems are solved, and by the exact answer where there is one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqgen_solvers.problems import Problem
from tests.contracts.table import METHODS
from tests.properties.recipes import Recipe, able, beyond_picard, cells, contractions


def assert_solved(problem: Problem, method: str) -> None:
    solution = problem.run(METHODS[method])
    assert solution.converged.all(), solution.explain()
    assert problem.solved_by(solution.z).all()


# What is cleared now and then (a Krylov space) should first have held most directions: on large
# non-normal matrices it comes to a halt otherwise. A window that slides only slows down.
LARGEST = {"gmres-5": 10, "gmres-20": 20, "newton_krylov": 10}


@pytest.mark.parametrize("method", able("contraction 0.9", "non-normal 0.95", "complex"))
@settings(max_examples=8)
@given(data=st.data())
def test_contractions(method: str, data: st.DataObject) -> None:
    recipe = data.draw(contractions(0.5, 0.95, largest=LARGEST.get(method, 24)))
    assert_solved(recipe(max_steps=1500), method)


# Not those with too short a window: near radius 1 they may jump to infinity.
@pytest.mark.parametrize("method", able("contraction 0.999", "rotation 1.1"))
@settings(max_examples=8)
@given(data=st.data())
def test_slow_contractions(method: str, data: st.DataObject) -> None:
    recipe = data.draw(contractions(0.95, 0.999, largest=LARGEST.get(method, 24)))
    assert_solved(recipe(max_steps=2000), method)


# Their windows hold all the directions of the eight unknowns drawn at most.
@pytest.mark.parametrize("method", ["anderson-long", "broyden"])
@settings(max_examples=20)
@given(recipe=beyond_picard())
def test_affine_maps_beyond_plain_iteration(method: str, recipe: Recipe) -> None:
    assert_solved(recipe(), method)
    assert not recipe().run("picard", max_steps=100).converged.any()


@pytest.mark.parametrize("method", able("tanh 0.8", "transformer"))
@settings(max_examples=8)
@given(recipe=cells())
def test_cells(method: str, recipe: Recipe) -> None:
    assert_solved(recipe(), method)
