"""Every method on every problem: the right answer, or an honest failure where one is expected."""

from __future__ import annotations

import pytest
import torch

from deqgen_solvers import Status, available_solvers, make_solver
from tests.contracts.table import FAILURES, METHODS, PROBLEMS, QUICK


def test_table_of_failures_names_what_exists() -> None:
    assert {m for m, _ in FAILURES} <= set(METHODS)
    assert {p for _, p in FAILURES} <= set(PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_users_are_told_of_the_same_failures(name: str) -> None:
    """What the public problems say of a method by its name is what the table says of its row."""
    failures = PROBLEMS[name]().failures
    assert set(failures) <= set(available_solvers()) & set(METHODS)
    for method in set(METHODS) & set(available_solvers()):
        assert METHODS[method] == make_solver(method)
        assert bool(FAILURES.get((method, name))) == (method in failures)
    assert all(why.endswith(".") for why in failures.values())


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_answer(method: str, name: str) -> None:
    problem = PROBLEMS[name]()
    solution = problem.run(METHODS[method])
    expected = torch.ones(len(problem.z0), dtype=torch.bool)
    expected[list(FAILURES.get((method, name), ()))] = False
    assert solution.converged.tolist() == expected.tolist(), solution.explain()
    assert torch.equal(problem.solved_by(solution.z), expected)
    eps = torch.finfo(solution.z.dtype).eps
    image = problem.f(solution.z, *problem.args)
    assert torch.equal(solution.fz, image) or torch.allclose(solution.fz, image, rtol=1e2 * eps)
    # Of two vectors nearly the same, the difference is rounded in their last digits.
    noise = 1e2 * eps * (1 + float(image.abs().max()))
    assert torch.allclose(solution.residual, problem.residual(solution.z), rtol=1e-3, atol=noise)


@pytest.mark.parametrize("method", METHODS)
def test_what_fails_returns_its_best_iterate(method: str) -> None:
    problem = PROBLEMS["rotation 1.1"]()
    max_steps = 1 if method in QUICK else 6
    solution = problem.run(METHODS[method], trace=True, max_steps=max_steps, select="best")
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3
    assert torch.equal(solution.residual, solution.trace.residual.min(dim=0).values)
    last = problem.run(METHODS[method], trace=True, max_steps=max_steps, select="last")
    assert torch.equal(last.residual, last.trace.residual[-1])
