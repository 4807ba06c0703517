"""Implicit around its theorem: compaction, warm start, callback, systems of any radius."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.gradients import (
    JFB,
    SHINE,
    EquilibriumWarning,
    Forward,
    Implicit,
    Phantom,
    Reversible,
    Unrolled,
)
from deqgen.gradients.product import Evaluation, Product
from deqgen_solvers import Broyden, Solution, Tolerance
from tests.gradients.cells import TIGHT, gradients, loss, matrix

WEIGHT = matrix(6, 1.0, 0)


class Graded:
    """z -> tanh(gain W z + x): a sample's gain is its difficulty. Counts the rows it evaluates."""

    def __init__(self) -> None:
        self.weight = WEIGHT.clone().requires_grad_()
        self.rows = 0

    def __call__(self, z: Tensor, gain: Tensor, x: Tensor) -> Tensor:
        self.rows += z.shape[0]
        return torch.tanh(gain * (z @ self.weight.T) + x)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """z0, gains and inputs of sixteen samples, one of them hard."""
    gain = torch.full((16, 1), 0.05, dtype=torch.float64)
    gain[5] = 0.97
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.zeros_like(x), gain.requires_grad_(), (x / 10).requires_grad_()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver", ["gmres", "anderson", "broyden"])
def test_compaction_changes_the_cost_and_not_the_gradient(solver: str, order: int) -> None:
    def run(compact: bool) -> tuple[list[Tensor], int]:
        cell, (z0, gain, x) = Graded(), batch()
        forward = Forward(Broyden(memory=50), TIGHT, 200, compact=compact)
        estimator = Implicit(solver, TIGHT, 200, order=order)
        z = estimator.differentiate(cell, z0, (gain, x), forward).z
        found = gradients(loss(z), cell.weight, gain, x)
        return found, cell.rows

    whole, all_rows = run(False)
    parted, rows = run(True)
    assert rows < 0.7 * all_rows
    for a, b in zip(parted, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_compaction_restores_autocast() -> None:
    def run(compact: bool) -> list[Tensor]:
        weight = WEIGHT.float().requires_grad_()
        z0, gain, x = (t.detach().float() for t in batch())
        x.requires_grad_()
        tol = Tolerance(atol=0.0, rtol=3e-2)
        with torch.autocast("cpu", torch.bfloat16):
            z = (
                Implicit("picard", tol, 100)
                .differentiate(
                    lambda z, gain, x: torch.tanh(gain * (z @ weight.T) + x).to(z.dtype),
                    z0,
                    (gain, x),
                    Forward("picard", tol, 100, compact=compact),
                )
                .z
            )
        return gradients(loss(z), weight, x)

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(a, b)


def test_the_callback_sees_the_adjoint_solve_and_a_warm_start_shortens_it() -> None:
    cell, (z0, gain, x) = Graded(), batch()
    seen: list[Solution[Any]] = []
    forward = Forward(Broyden(memory=50), TIGHT, 200)

    def slope(estimator: Implicit) -> Tensor:
        z = estimator.differentiate(cell, z0, (gain, x), forward).z
        return gradients(loss(z), x)[0]

    tol = Tolerance(atol=0.0, rtol=1e-10)
    warm = Implicit(tol=tol, warm_start=True, callback=seen.append)
    first, second = slope(warm), slope(warm)
    assert len(seen) == 2
    assert seen[0].converged.all() and seen[1].nfe <= 2 < 8 <= seen[0].nfe
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(slope(Implicit(tol=tol)), first, rtol=1e-8, atol=1e-10)
    z = warm.differentiate(cell, z0[:3], (gain[:3], x[:3]), forward).z  # another shape: anew
    assert gradients(loss(z), x)[0][:3].isfinite().all()


def test_a_warm_start_forgets_a_loss_that_was_not_finite() -> None:
    cell, (z0, gain, x) = Graded(), batch()
    forward = Forward(Broyden(memory=50), TIGHT, 200)
    warm = Implicit(tol=Tolerance(atol=0.0, rtol=1e-10), warm_start=True)

    def slope(estimator: Implicit, broken: float = 1.0) -> Tensor:
        z = estimator.differentiate(cell, z0, (gain, x), forward).z
        scale = torch.ones(16, 1).index_fill(0, torch.tensor(3), broken)
        return gradients(loss(z * scale), x)[0]

    with pytest.warns(EquilibriumWarning, match="backward"):
        assert not slope(warm, torch.nan)[3].isfinite().any()
    exact = slope(Implicit(tol=Tolerance(atol=0.0, rtol=1e-10)))
    torch.testing.assert_close(slope(warm), exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("straight", [False, True])
def test_a_product_where_nothing_depends_on_the_state(straight: bool) -> None:
    points = [torch.ones(4, 2, requires_grad=True)]
    product = Product(Evaluation(lambda z: torch.ones_like(z), points[0], points, ()), straight)
    assert torch.equal(product((torch.ones(4, 2),))[0], torch.zeros(4, 2))


def test_gmres_needs_no_contraction() -> None:
    """The point is found by Broyden's method; the adjoint system has a spectral radius of 3."""
    a = -3 * torch.diag(torch.linspace(0.5, 1, 6, dtype=torch.float64))
    b = torch.ones(2, 6, dtype=torch.float64, requires_grad=True)
    forward = Forward(Broyden(memory=50), TIGHT, 100)
    z = Implicit(tol=TIGHT).differentiate(lambda z, b: z @ a + b, b.detach() * 0, (b,), forward).z
    exact = torch.linalg.solve(torch.eye(6) - a, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(gradients(z.sum(), b)[0], exact.expand(2, 6), rtol=1e-10, atol=0)


def test_an_adjoint_solve_that_fails_says_so() -> None:
    cell, (z0, gain, x) = Graded(), batch()
    forward = Forward(Broyden(memory=50), TIGHT, 200)
    z = Implicit(tol=TIGHT, max_steps=2).differentiate(cell, z0, (gain, x), forward).z
    with pytest.warns(EquilibriumWarning, match="the backward solve missed its tolerance"):
        gradients(loss(z), x)


@pytest.mark.parametrize("option", ["max_steps", "order"])
def test_bad_options(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        Implicit(**{option: 0})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Implicit(tol=1e-5), "tol must be a Tolerance or None"),  # type: ignore[arg-type]
        (lambda: Implicit(Broyden), "Broyden"),  # type: ignore[arg-type]
        (lambda: Implicit(object()), "solver"),  # type: ignore[arg-type]
        (lambda: Implicit(max_steps=2.5), "max_steps must be a whole number"),  # type: ignore[arg-type]
        (lambda: Implicit(order=True), "order must be a whole number"),
        (lambda: Implicit(warm_start="no"), "warm_start must be True or False"),  # type: ignore[arg-type]
        (lambda: Implicit(callback=3), "callback must be callable"),  # type: ignore[arg-type]
        (lambda: Phantom(2.5), "steps must be a whole number"),  # type: ignore[arg-type]
        (lambda: Unrolled(2.0), "steps must be a whole number"),  # type: ignore[arg-type]
        (lambda: Unrolled(2, checkpoint=1), "checkpoint must be True or False"),  # type: ignore[arg-type]
        (lambda: Reversible(2.5), "steps must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_found_when_an_estimator_is_built(build: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_a_pair_that_cannot_work_is_refused_at_the_first_call() -> None:
    cell, (z0, gain, x) = Graded(), batch()
    forward = Forward(Broyden(memory=50), TIGHT, 200, compact=True)
    with pytest.raises(ValueError, match="NewtonKrylov"):
        Implicit("newton_krylov").differentiate(cell, z0, (gain, x), forward)
    with pytest.raises(ValueError, match="two evaluations"):
        Reversible().differentiate(cell, z0, (gain, x), Forward(tol=None, max_steps=1))


@pytest.mark.parametrize("estimator", [JFB(), Phantom(2, 0.5, "neumann"), SHINE()])
def test_every_estimator_that_solves_says_so_when_the_solve_failed(estimator: Any) -> None:
    cell, (z0, gain, x) = Graded(), batch()
    short = Forward(Broyden(memory=2), TIGHT, 2)
    with pytest.warns(EquilibriumWarning, match="forward solve missed"):
        estimator.differentiate(cell, z0, (gain, x), short)
    Phantom(2).differentiate(cell, z0, (gain, x), short)  # its own steps lead on: no warning
    spent = Forward(Broyden(memory=2), Tolerance(atol=0.0, rtol=0.0), 2)
    estimator.differentiate(cell, z0, (gain, x), spent)  # a budget by design: no warning
