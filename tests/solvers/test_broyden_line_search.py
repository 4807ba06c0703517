"""Broyden with a line search: where steps are far too long, and nothing else changes.

Letters: B samples.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqgen_solvers import Broyden, Tolerance, make_solver, solve
from deqgen_solvers.problems import make_problem

TOL = Tolerance(atol=1e-10, rtol=0.0)


def steep(z: Tensor) -> Tensor:
    """Fixed points where z^3 + z = 0, 1, 2, 3; the slope at the starts below is -30 to -1000."""
    return z - 10 * (z**3 + z - torch.arange(4))


STARTS = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64).expand(3, 4)


def test_it_converges_where_plain_broyden_does_not() -> None:
    plain = solve(steep, STARTS, solver=Broyden(), tol=TOL, max_steps=60)
    found = solve(steep, STARTS, solver=Broyden(line_search=True), tol=TOL, max_steps=60)
    assert not plain.converged[2]
    assert found.converged.all() and found.steps.max() < 45
    assert (found.z**3 + found.z - torch.arange(4)).abs().max() < 1e-9


def test_a_sample_never_changes_its_neighbour() -> None:
    solver = Broyden(line_search=True)
    whole = solve(steep, STARTS, solver=solver, tol=TOL, max_steps=60)
    for i in range(3):
        alone = solve(steep, STARTS[i : i + 1], solver=solver, tol=TOL, max_steps=60)
        assert alone.steps[0] == whole.steps[i]
        assert torch.allclose(alone.z[0], whole.z[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_trial_touches_no_neighbour(poison: float) -> None:
    """Row 1 is bad beyond 1: its trials are, down to a length that is not, and it goes on."""
    edge = torch.tensor([[torch.inf], [1.0]], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return torch.where(z > edge[: len(z)], poison, 0.25 * z + 3 - 3 * z)

    solver = Broyden(line_search=True)
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    assert solve(f, z0, tol=TOL, solver=Broyden()).status.tolist() == [0, 2]
    both = solve(f, z0, tol=TOL, solver=solver)
    assert both.converged.all() and torch.allclose(both.z, torch.full_like(z0, 0.8))
    alone = solve(f, z0[:1], tol=TOL, solver=solver)
    assert alone.steps[0] == both.steps[0] and torch.equal(alone.z[0], both.z[0])


@pytest.mark.parametrize("name", ["contraction 0.5", "tridiagonal", "transformer", "complex"])
def test_where_full_steps_do_it_takes_them(name: str) -> None:
    """The same path at one more call a step."""
    problem = make_problem(name)
    plain, searched = problem.run(Broyden()), problem.run(Broyden(line_search=True))
    assert searched.steps.tolist() == plain.steps.tolist()
    assert torch.allclose(searched.z, plain.z, rtol=1e-6)
    assert searched.nfe == plain.nfe + int(plain.steps.max())


def test_it_counts_every_trial() -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return steep(z)

    solution = solve(f, STARTS, solver=Broyden(line_search=True), tol=TOL, max_steps=60)
    assert solution.nfe == calls > int(solution.steps.max()) * 2


def test_finished_samples_do_not_hold_up_the_others() -> None:
    """A sample at its fixed point can come no closer: it is not searched for."""
    start = torch.tensor([[0.0], [5.0]], dtype=torch.float64)
    f = lambda z: 0.5 * torch.sin(z)  # noqa: E731
    solver = Broyden(line_search=True)
    both = solve(f, start, solver=solver, tol=TOL)
    alone = solve(f, start[1:], solver=solver, tol=TOL)
    # One search too many: on the first step nothing tells a finished sample from another.
    assert alone.nfe <= both.nfe <= alone.nfe + 5


@pytest.mark.parametrize("value", [1, "yes", None])
def test_mistakes(value: object) -> None:
    with pytest.raises(TypeError, match="Broyden: line_search must be True or False, got"):
        make_solver("broyden", line_search=value)
