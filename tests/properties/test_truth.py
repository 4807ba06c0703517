"""Whatever is asked of the driver, what it reports is what happened: counted and computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Status, Tolerance, solve
from deqgen_solvers.problems import available_problems, make_problem
from tests.contracts.table import METHODS

requests = st.fixed_dictionaries(
    {
        "max_steps": st.integers(0, 30),
        "tol": st.floats(1, 9).map(lambda digits: Tolerance(atol=1e-12, rtol=10.0**-digits)),
        "select": st.sampled_from(("best", "last")),
        "compact": st.booleans(),
    }
)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(name=st.sampled_from(available_problems()), request=requests)
def test_reports_are_true(method: str, name: str, request: dict[str, Any]) -> None:
    problem, calls = make_problem(name), 0

    def f(z: Tensor, *args: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.f(z, *args)

    solution = solve(f, problem.z0, problem.args, METHODS[method], trace=True, **request)
    assert solution.nfe == calls
    # Of two vectors nearly the same, the difference is rounded in their last digits.
    image = problem.f(solution.z, *problem.args)
    noise = 1e2 * torch.finfo(image.dtype).eps * (1 + float(image.abs().max()))
    assert torch.allclose(solution.fz, image, rtol=1e-4, atol=noise)
    assert torch.allclose(solution.residual, problem.residual(solution.z), rtol=1e-3, atol=noise)

    size = solution.fz.flatten(1).norm(dim=1)
    threshold = request["tol"].threshold(size, problem.z0[0].numel())
    assert (solution.residual <= threshold * (1 + 1e-5))[solution.converged].all()
    limit, steps = request["max_steps"], solution.steps
    assert len(solution.trace.residual) == len(solution.trace.rows) == steps.max() + 1
    assert (steps[solution.status == Status.MAX_STEPS] == limit).all() and (steps <= limit).all()
    if request["select"] == "best":
        least = solution.trace.residual.nan_to_num(torch.inf).min(dim=0).values
        # A converged sample returns the iterate that did; with rtol, an earlier may have less.
        left = ~solution.converged
        assert torch.allclose(solution.residual.double()[left], least[left], rtol=1e-6)
