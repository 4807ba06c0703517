"""How wrong each estimator is, as its theory says, on contractions of rate r.

On an affine map f(z) = A z + b everything is known: the exact gradient in b is v* = (I - A^T)^-1 u,
and that of an estimator some polynomial in A^T applied to u.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen.gradients import (
    JFB,
    SHINE,
    Forward,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    StochasticJFB,
    Unrolled,
)
from deqgen_solvers import Broyden, Tolerance
from tests.gradients.cells import EXACT, TIGHT, Tanh, gradients, inputs, loss, matrix, seeded

N = 6
RATES = st.floats(0.1, 0.9)
SEEDS = st.integers(0, 1000)


def affine(estimator: GradientEstimator, a: Tensor, u: Tensor, forward: Forward = EXACT) -> Tensor:
    """The estimator's gradient in b (B, N), where the loss has gradient u (B, N) in z."""
    b = torch.ones_like(u, requires_grad=True)
    z = estimator.differentiate(lambda z, b: z @ a.T + b, torch.zeros_like(u), (b,), forward).z
    return torch.autograd.grad(z, b, u)[0]


def cotangent(seed: int) -> Tensor:
    return torch.randn(3, N, generator=seeded(seed), dtype=torch.float64)


def exact(a: Tensor, u: Tensor) -> Tensor:
    return torch.linalg.solve(torch.eye(N, dtype=a.dtype) - a.T, u.T).T


@settings(max_examples=30)
@given(seed=SEEDS, rate=RATES, steps=st.integers(1, 12))
def test_unrolled_leaves_out_the_tail_of_the_neumann_series(
    seed: int, rate: float, steps: int
) -> None:
    """v* - v = (A^T)^k v*: the error falls by the rate of contraction at least, each step."""
    a, u = matrix(N, rate, seed), cotangent(seed + 1)
    star = exact(a, u)
    for estimator in (Unrolled(steps), Unrolled(steps, checkpoint=True)):
        missing = star - affine(estimator, a, u)
        torch.testing.assert_close(
            missing, star @ torch.linalg.matrix_power(a, steps), rtol=1e-9, atol=1e-12
        )
    assert bool((missing.norm(dim=1) <= rate**steps * star.norm(dim=1) * (1 + 1e-9)).all())


@settings(max_examples=20)
@given(seed=SEEDS, rate=RATES, free=st.integers(0, 9), recorded=st.integers(1, 9))
def test_stochastic_jfb_is_the_neumann_sum_of_its_recorded_steps(
    seed: int, rate: float, free: int, recorded: int
) -> None:
    a, u = matrix(N, rate, seed), cotangent(seed + 1)
    found = affine(StochasticJFB((free, free), (recorded, recorded)), a, u)
    series = sum(u @ torch.linalg.matrix_power(a, i) for i in range(recorded))
    torch.testing.assert_close(found, series, rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(seed=SEEDS, rate=RATES, steps=st.integers(1, 8), beta=st.floats(0.2, 0.7))
def test_reversible_errs_by_a_power_of_its_iteration_matrix(
    seed: int, rate: float, steps: int, beta: float
) -> None:
    """The pair of errors of (y, z), which starts as -(z*, z*), is multiplied by M each step."""
    a, u = matrix(N, rate, seed), cotangent(seed + 1)
    eye, zero = torch.eye(N, dtype=a.dtype), torch.zeros(N, N, dtype=a.dtype)
    first = torch.cat([torch.cat([(1 - beta) * eye, beta * a], 1), torch.cat([zero, eye], 1)])
    second = torch.cat([torch.cat([eye, zero], 1), torch.cat([beta * a, (1 - beta) * eye], 1)])
    power = torch.linalg.matrix_power(second @ first, steps)
    to_z = power[N:, :N] + power[N:, N:]  # from an error common to y and z
    star = exact(a, u)
    missing = exact(a, u @ to_z)  # the initial error is (I - A)^-1 b, constant in all else
    torch.testing.assert_close(
        star - affine(Reversible(steps, beta), a, u), missing, rtol=1e-9, atol=1e-11
    )


@settings(max_examples=30)
@given(seed=SEEDS, rate=RATES, digits=st.integers(1, 10))
def test_implicit_errs_by_its_tolerance_over_one_minus_the_rate(
    seed: int, rate: float, digits: int
) -> None:
    """From v = u + A^T v + residual: |v - v*| <= |residual| / (1 - r)."""
    a, u = matrix(N, rate, seed), cotangent(seed + 1)
    rtol = 10.0**-digits
    star = exact(a, u)
    for solver in ("gmres", "picard", "anderson", "broyden"):
        estimator = Implicit(solver, Tolerance(atol=0.0, rtol=rtol), max_steps=500)
        v = affine(estimator, a, u)
        # The answer is the image u + A^T v, which contracts the error once more.
        size = v.norm(dim=1)
        assert bool(((v - star).norm(dim=1) <= rtol * size / (1 - rate) + 1e-13).all()), solver


@settings(max_examples=30)
@given(seed=SEEDS, rate=st.floats(0.1, 0.95))
def test_jfb_is_a_descent_direction_on_contractions(seed: int, rate: float) -> None:
    """With g the exact gradient in an additive input and p that of JFB: <p, g> >= (1 - r) |g|^2.

    For u = (I - J^T) g is JFB's answer (Fung et al. 2022, theorem 1, with M = I).
    """
    cell = Tanh(N, rate, seed)
    _, x = inputs(3, N, seed + 1)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return cell(z, torch.zeros(())) + x  # a contraction of rate r, and df/dx = I

    found = []
    for estimator in (JFB(), Implicit(tol=TIGHT)):
        z = estimator.differentiate(f, torch.zeros_like(x), (x,), EXACT).z
        found.append(gradients(loss(z), x)[0])
    p, g = found
    product = (p * g).sum(1)
    assert bool((product >= (1 - rate) * g.square().sum(1) * (1 - 1e-9)).all())


def test_every_error_falls_as_the_work_grows() -> None:
    """On a nonlinear cell of rate 0.7, in all that depends on it, to rounding in the end."""
    cell = Tanh(N, 0.7)
    z0, x = inputs(3, N)
    learnt = Forward(Broyden(memory=60), TIGHT, 60)

    def slope(estimator: GradientEstimator, forward: Forward = EXACT) -> Tensor:
        z = estimator.differentiate(cell, z0, (x,), forward).z
        return torch.cat([g.flatten() for g in gradients(loss(z), x, cell.weight, cell.bias)])

    star = slope(Unrolled(400))

    def fixed(k: int, solver: str = "gmres") -> Implicit:
        return Implicit(solver, tol=None, max_steps=k)

    ladders: dict[str, list[GradientEstimator]] = {
        "unrolled": [Unrolled(k) for k in (1, 4, 16, 64)],
        "unrolled, checkpoint": [Unrolled(k, checkpoint=True) for k in (1, 4, 16, 64)],
        "phantom": [Phantom(k, 0.8) for k in (1, 4, 16, 64)],
        "neumann": [Phantom(k, 0.8, "neumann") for k in (1, 4, 16, 64)],
        "reversible": [Reversible(k) for k in (1, 4, 16)],
        "stochastic-jfb": [StochasticJFB((90, 90), (k, k)) for k in (1, 4, 16, 64)],
        "shine": [SHINE(k) for k in (0, 1, 2, 4)],
        "implicit, gmres": [fixed(k) for k in (1, 3, 5, 12)],
        "implicit, picard": [fixed(k, "picard") for k in (1, 4, 16, 64)],
    }
    for name, ladder in ladders.items():
        forward = learnt if name == "shine" else EXACT
        errors = [float((slope(rung, forward) - star).norm() / star.norm()) for rung in ladder]
        assert all(b < 0.5 * a for a, b in pairwise(errors)), (name, errors)
        assert errors[-1] < (1e-2 if name == "reversible" else 1e-6), (name, errors)
