"""Every method on every problem: the right answer, or an honest failure where one is expected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqgen_solvers import Solution, Status, solve
from tests.contracts.table import FAILURES, METHODS, PROBLEMS, Problem


def run(problem: Problem, method: str, **settings: object) -> Solution[Tensor]:
    return solve(
        problem.f,
        problem.z0,
        problem.args,
        METHODS[method],
        **{"tol": problem.tol, "max_steps": problem.max_steps, **settings},
    )


def true_residual(problem: Problem, z: Tensor) -> Tensor:
    return (problem.f(z, *problem.args) - z).flatten(1).norm(dim=1)


def test_table_of_failures_names_what_exists() -> None:
    assert {m for m, _ in FAILURES} <= set(METHODS)
    assert {p for _, p in FAILURES} <= set(PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_answer(method: str, name: str) -> None:
    problem = PROBLEMS[name]()
    solution = run(problem, method)
    expected = torch.ones(len(problem.z0), dtype=torch.bool)
    expected[list(FAILURES.get((method, name), ()))] = False
    assert solution.converged.tolist() == expected.tolist(), solution.explain()
    residual = true_residual(problem, solution.z)
    assert torch.allclose(solution.residual, residual, rtol=1e-3, atol=float(problem.error) * 1e-6)
    assert torch.equal(solution.fz, problem.f(solution.z, *problem.args)) or torch.allclose(
        solution.fz, problem.f(solution.z, *problem.args), rtol=1e-5, atol=1e-12
    )
    size = solution.fz.flatten(1).norm(dim=1)
    within = residual <= problem.tol.threshold(size, problem.z0[0].numel()) * (1 + 1e-6)
    assert torch.equal(within, expected)
    if problem.exact is not None:
        off = (solution.z - problem.exact).abs().flatten(1).norm(dim=1)
        assert (
            off[expected] <= problem.error * problem.exact.flatten(1).norm(dim=1)[expected]
        ).all()


@pytest.mark.parametrize("method", METHODS)
def test_what_fails_returns_its_best_iterate(method: str) -> None:
    problem = PROBLEMS["rotation 1.1"]()
    solution = run(problem, method, trace=True, max_steps=6, select="best")
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3
    assert torch.equal(solution.residual, solution.trace.residual.min(dim=0).values)
    last = run(problem, method, trace=True, max_steps=6, select="last")
    assert torch.equal(last.residual, last.trace.residual[-1])
