"""Anderson of type I: FOM on affine maps, and Broyden's good method with all secants at once.

Letters: N unknowns of one sample, A the matrix of an affine map z -> A z + b, K differences.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Anderson, AndersonTypeI, Broyden, Tolerance, make_solver, solve
from tests.solvers.test_methods import affine, iterates, krylov, seeds

DOUBLES = [torch.float64, torch.complex128]


def fom(a: Tensor, b: Tensor, z0: Tensor, steps: int) -> Tensor:
    """The point of z0 + span(r, A r, ...) whose residual is orthogonal to that span, densely."""
    r = a @ z0 + b - z0
    basis = krylov(a, r, steps)
    small = basis.mH @ (basis - a @ basis)
    return z0 + basis @ torch.linalg.solve(small, basis.mH @ r)


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("damping", [1.0, 0.6])
@settings(max_examples=10)
@given(n=st.integers(3, 7), seed=seeds)
def test_full_memory_is_fom(dtype: torch.dtype, damping: float, n: int, seed: int) -> None:
    """z_(k+1) is one step of the map from the FOM point, as type II's is from the GMRES point."""
    a, b = affine(n, seed, dtype=dtype)
    solver = AndersonTypeI(memory=n + 1, damping=damping)
    seen = iterates(solver, lambda z: z @ a.T + b, b * 0, n)
    for k in range(1, n):
        point = fom(a, b, b * 0, k)
        expected = point + damping * (a @ point + b - point)
        assert (seen[k + 1] - expected).norm() <= 1e-6 * expected.norm()


def multisecant(f: object, z0: Tensor, steps: int, memory: int, damping: float) -> list[Tensor]:
    """Fang and Saad, section 3: the B nearest to -I / damping with B s = y for all pairs kept."""
    z, seen = z0, [z0]
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(steps):
        g = f(z) - z
        b = -torch.eye(len(z), dtype=z.dtype) / damping
        if moves:
            s, y = torch.stack(moves[-memory:], 1), torch.stack(changes[-memory:], 1)
            b = b + (y - b @ s) @ torch.linalg.solve(s.mH @ s, s.mH)
        z_next = z - torch.linalg.solve(b, g)
        moves.append(z_next - z)
        changes.append(f(z_next) - z_next - g)
        z = z_next
        seen.append(z)
    return seen


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize(("memory", "damping"), [(2, 1.0), (3, 0.7), (20, 1.0)])
@settings(max_examples=8)
@given(seed=seeds)
def test_it_is_the_dense_multisecant_formula(
    memory: int, damping: float, dtype: torch.dtype, seed: int
) -> None:
    a, b = affine(8, seed, dtype=dtype)
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    solver = AndersonTypeI(memory=memory, damping=damping)
    seen = torch.stack(iterates(solver, f, b, 6))
    expected = torch.stack(multisecant(f, b, 6, memory - 1, damping))
    assert (seen - expected).norm() <= 1e-6 * expected.norm()


def test_with_one_pair_it_is_broyden() -> None:
    a, b = affine(6, 0)
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    one = torch.stack(iterates(AndersonTypeI(memory=2), f, b, 8))
    broyden = torch.stack(iterates(Broyden(memory=1), f, b, 8))
    assert torch.allclose(one, broyden, rtol=1e-9, atol=1e-12)


@settings(max_examples=15)
@given(n=st.integers(1, 7), seed=seeds)
def test_full_memory_ends_after_n_plus_one_steps(n: int, seed: int) -> None:
    a, b = affine(n, seed)
    tol = Tolerance(atol=0.0, rtol=1e-8)
    solver = AndersonTypeI(memory=n + 1)
    solution = solve(lambda z: z @ a.T + b, b[None] * 0, solver=solver, tol=tol)
    assert solution.converged.all() and solution.steps.item() <= n + 1


def test_memory_one_is_picard() -> None:
    f = lambda z: torch.cos(z)  # noqa: E731
    start = torch.ones(3, dtype=torch.float64)
    one = torch.stack(iterates(AndersonTypeI(memory=1), f, start, 5))
    two = torch.stack(iterates(Anderson(memory=1), f, start, 5))
    assert torch.equal(one, two)


@pytest.mark.parametrize("ridge", [None, 0.0])
def test_where_fom_breaks_down_it_takes_the_plain_step(ridge: float | None) -> None:
    """<dz, dr> = 0 in row 0, where A turns a vector by its own length; row 1 is as if alone."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[0.5, 0.1], [0.0, -0.3]], dtype=torch.float64)
    b = torch.ones(2, dtype=torch.float64)
    solver = AndersonTypeI(memory=3, ridge=ridge)

    def run(*matrices: Tensor) -> object:
        a = torch.stack(matrices)
        f = lambda z: torch.einsum("bij,bj->bi", a, z) + b  # noqa: E731
        tol = Tolerance(atol=0.0, rtol=1e-9)
        return solve(f, torch.zeros(len(a), 2).double(), solver=solver, tol=tol, max_steps=30)

    both, alone = run(turn, other), run(other)
    assert both.converged[1] and torch.allclose(both.z[1], alone.z[0], rtol=1e-10)
    assert both.z.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_fixed_point_it_does_not_run_away_until_the_tolerance_is_met(
    dtype: torch.dtype,
) -> None:
    """dr = 0: the system is singular but for the ridge, which alone would take a step of 1e7."""
    z0 = torch.zeros(2, 3, dtype=dtype)
    solution = solve(lambda z: z + 1, z0, solver=AndersonTypeI(), max_steps=9)
    assert not solution.converged.any() and float(solution.z.abs().max()) <= 9


def test_safeguard_falls_back_to_the_plain_step_for_its_row() -> None:
    """A jump far away sends the residual of row 0 up a billionfold; row 1 goes on as ever."""
    solver = AndersonTypeI(memory=4)
    a, b = affine(5, 0)
    f = lambda z: z @ a.T + b  # noqa: E731
    z = torch.zeros(2, 5, dtype=torch.float64)
    state = solver.init(z)
    for _ in range(3):
        z, state = solver.step(f, z, f(z), state)
    z = z.clone()
    z[0] += 1e9
    proposal, _ = solver.step(f, z, f(z), state)
    assert torch.equal(proposal[0], f(z)[0])
    assert not torch.equal(proposal[1], f(z)[1])


@pytest.mark.parametrize(
    ("option", "value"), [("memory", 0), ("damping", 0.0), ("damping", 1.5), ("ridge", -1.0)]
)
def test_mistakes(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"AndersonTypeI: {option} must .* got"):
        make_solver("anderson-type-1", **{option: value})
