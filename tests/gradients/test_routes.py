"""Three routes to one gradient: the implicit function theorem, unrolling, finite differences."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen.gradients import GradientEstimator, Implicit, Phantom, Unrolled
from deqgen_solvers import Tolerance
from tests.gradients.cells import (
    EXACT,
    TIGHT,
    Tanh,
    difference_quotient,
    gradients,
    inputs,
    loss,
    matrix,
    seeded,
)


def solved(estimator: GradientEstimator, cell: Any, z0: Tensor, *args: Tensor) -> Tensor:
    z: Tensor = estimator.differentiate(cell, z0, args, EXACT).z
    return z


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    norm=st.floats(0.05, 0.9),
    size=st.integers(1, 5),
    solver=st.sampled_from(["anderson", "picard", "broyden"]),
)
def test_implicit_unrolled_and_finite_differences_agree(
    seed: int, norm: float, size: int, solver: str
) -> None:
    cell = Tanh(size, norm, seed)
    z0, x = inputs(2, size, seed + 1)
    wanted = (x, cell.weight, cell.bias)
    implicit = Implicit(solver=solver, tol=Tolerance(atol=0.0, rtol=1e-11), max_steps=1000)
    by_theorem = gradients(loss(solved(implicit, cell, z0, x)), *wanted)
    by_unrolling = gradients(loss(solved(Unrolled(400), cell, z0, x)), *wanted)
    for mine, long, at in zip(by_theorem, by_unrolling, wanted, strict=True):
        torch.testing.assert_close(mine, long, rtol=1e-7, atol=1e-9)
        slope = difference_quotient(lambda: loss(solved(Implicit(), cell, z0, x)), at.detach())
        torch.testing.assert_close(mine, slope, rtol=1e-5, atol=1e-7)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 12),
    damping=st.floats(0.05, 1.0),
    mode=st.sampled_from(["unroll", "neumann"]),
)
def test_phantom_of_an_affine_map_is_its_damped_neumann_sum(
    seed: int, steps: int, damping: float, mode: str
) -> None:
    size = 5
    a = matrix(size, 0.8, seed).requires_grad_()
    b = torch.randn(3, size, generator=seeded(seed + 1), dtype=torch.float64, requires_grad=True)
    u = torch.randn(3, size, generator=seeded(seed + 2), dtype=torch.float64)
    z = solved(Phantom(steps, damping, mode), lambda z, b: z @ a.T + b, torch.zeros_like(b), b)
    grad_a, grad_b = torch.autograd.grad(z, (a, b), u)

    eye = torch.eye(size, dtype=torch.float64)
    damped = damping * a.detach() + (1 - damping) * eye
    total = damping * sum(torch.linalg.matrix_power(damped, i) for i in range(steps))
    v = u @ total
    fixed = torch.linalg.solve(eye - a.detach(), b.detach().T).T
    torch.testing.assert_close(grad_b, v, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_a, v.T @ fixed, rtol=1e-10, atol=1e-10)


def test_phantom_tends_to_the_exact_gradient() -> None:
    cell = Tanh(norm=0.6)
    z0, x = inputs()
    exact = gradients(loss(solved(Unrolled(400), cell, z0, x)), cell.weight)[0]
    errors = []
    for steps in (1, 4, 16, 64):
        z = solved(Phantom(steps, 0.8, "neumann"), cell, z0, x)
        errors.append((gradients(loss(z), cell.weight)[0] - exact).norm() / exact.norm())
    assert errors[0] > 1e-2
    assert all(later < 0.5 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-10


@pytest.mark.parametrize(
    "estimator", [Implicit(tol=TIGHT), Phantom(3, 0.7, "neumann"), Phantom(3, 0.7)], ids=repr
)
def test_a_gradient_does_not_depend_on_batch_mates(estimator: GradientEstimator) -> None:
    cell = Tanh()
    z0, x = inputs(4)
    together = gradients(solved(estimator, cell, z0, x).sin().sum(), x)[0]
    for row in range(4):
        one = x.detach()[row : row + 1].requires_grad_()
        alone = gradients(solved(estimator, cell, z0[:1], one).sin().sum(), one)[0]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-12)


def test_a_state_of_several_tensors() -> None:
    a = matrix(3, 0.4, 5).requires_grad_()

    def cell(z: dict[str, Any], x: Tensor) -> dict[str, Any]:
        p, (q,) = z["p"], z["q"]
        return {"q": (torch.tanh(p.sum(1, keepdim=True)) / 4 + x[:, :1],), "p": p @ a.T + q + x}

    def value(estimator: GradientEstimator) -> list[Tensor]:
        x = inputs(2, 3)[1]
        z0 = {"p": torch.zeros_like(x), "q": (torch.zeros_like(x[:, :1]),)}
        z = estimator.differentiate(cell, z0, (x,), EXACT).z
        assert set(z) == {"p", "q"}
        assert isinstance(z["q"], tuple)
        return gradients(loss(z["p"]) + z["q"][0].exp().sum(), a, x)

    for mine, long in zip(value(Implicit(tol=TIGHT)), value(Unrolled(300)), strict=True):
        torch.testing.assert_close(mine, long, rtol=1e-9, atol=1e-11)


def test_a_complex_state() -> None:
    a = (matrix(3, 0.3, 1) + 1j * matrix(3, 0.3, 2)).requires_grad_()

    def value(estimator: GradientEstimator) -> Tensor:
        x = inputs(2, 3)[1].detach() * (1 + 0.5j)
        z = estimator.differentiate(lambda z, x: z @ a.T + x, torch.zeros_like(x), (x,), EXACT).z
        return gradients((z * (2 - 1j)).real.square().sum(), a)[0]

    torch.testing.assert_close(value(Implicit(tol=TIGHT)), value(Unrolled(300)))
