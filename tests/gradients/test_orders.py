"""Derivatives of any order and in both modes, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from deqgen.gradients import (
    SHINE,
    Forward,
    GradientError,
    GradientEstimator,
    Implicit,
    Phantom,
    Unrolled,
)
from deqgen_solvers import Broyden, StateError, Tolerance
from tests.gradients.cells import EXACT, TIGHT, inputs, loss, matrix

# Forward mode loads torch's decompositions, which warn.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")


def fixed_point(
    estimator: GradientEstimator, forward: Forward = EXACT
) -> Callable[[Tensor, Tensor], Tensor]:
    """z(x, w) = tanh(w z + x)."""

    def z(x: Tensor, w: Tensor) -> Tensor:
        cell = lambda z: torch.tanh(z @ w.T + x)  # noqa: E731
        out: Tensor = estimator.differentiate(cell, torch.zeros_like(x), (), forward).z
        return out

    return z


def problem(norm: float = 0.6, seed: int = 0) -> tuple[Tensor, Tensor]:
    return inputs(2, 3, seed + 1)[1], matrix(3, norm, seed).requires_grad_()


def test_first_order_in_both_modes() -> None:
    z = fixed_point(Implicit(tol=TIGHT))
    assert torch.autograd.gradcheck(z, problem(), check_forward_ad=True)


@pytest.mark.parametrize("solver", ["gmres", "anderson"])
def test_second_order(solver: str) -> None:
    z = fixed_point(Implicit(solver=solver, tol=TIGHT, order=2))
    assert torch.autograd.gradcheck(z, problem(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(z, problem())


def derivatives(z: Callable[..., Tensor], x: Tensor, w: Tensor, order: int) -> list[Tensor]:
    """Of a loss of the one before, so that every order mixes all lower ones."""
    value, found = loss(z(x, w)), []
    for _ in range(order):
        slopes = torch.autograd.grad(value, (x, w), create_graph=True)
        found += slopes
        value = sum(loss(slope) for slope in slopes)
    return found


@settings(max_examples=6)
@given(seed=st.integers(0, 100), order=st.integers(1, 3), norm=st.floats(0.1, 0.8))
def test_each_order_is_that_of_the_unrolled_iterations(seed: int, order: int, norm: float) -> None:
    x, w = problem(norm, seed)
    mine = derivatives(fixed_point(Implicit(tol=TIGHT, order=order)), x, w, order)
    long = derivatives(fixed_point(Unrolled(200)), x, w, order)
    for a, b in zip(mine, long, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_beyond_its_order_it_refuses(order: int) -> None:
    x, w = problem()
    z = fixed_point(Implicit(tol=TIGHT, order=order))
    with pytest.raises(GradientError, match=rf"beyond order {order}.*Implicit\(order=.*Unrolled"):
        derivatives(z, x, w, order + 1)


def test_the_answer_does_not_depend_on_the_order() -> None:
    x, w = problem()
    rough = Forward(solver="picard", tol=None, max_steps=5)
    first, third = (fixed_point(Implicit(order=k, tol=TIGHT), rough)(x, w) for k in (1, 3))
    assert torch.equal(first, third)


def tangent(z: Callable[..., Tensor], x: Tensor, w: Tensor, t: Tensor) -> Tensor:
    with forward_ad.dual_level():
        out = z(x.detach(), forward_ad.make_dual(w.detach(), t))
        moved: Tensor = forward_ad.unpack_dual(out).tangent
    return moved


@pytest.mark.parametrize("forward", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize("estimator", [Implicit(tol=TIGHT), Phantom(4, 0.7, "neumann")], ids=repr)
def test_forward_mode_is_the_transpose_of_reverse_mode(
    estimator: GradientEstimator, forward: str
) -> None:
    x, w = problem()
    z = fixed_point(estimator, Forward(solver=forward, tol=TIGHT, max_steps=200))
    u, t = torch.randn(2, 3).double(), torch.randn(3, 3).double()
    (pulled,) = torch.autograd.grad(z(x, w), w, u)
    pushed = tangent(z, x, w, t)
    torch.testing.assert_close((pushed * u).sum(), (pulled * t).sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_forward_mode_with_a_bare_budget(solver: str) -> None:
    x, w = problem()
    t = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    bare = fixed_point(Implicit(tol=TIGHT), Forward(solver=solver, tol=None, max_steps=200))
    tight = fixed_point(Implicit(tol=TIGHT), Forward(solver=solver, tol=TIGHT, max_steps=200))
    torch.testing.assert_close(tangent(bare, x, w, t), tangent(tight, x, w, t))


def test_forward_mode_without_a_graph() -> None:
    """Nothing requires a gradient; the tangent alone asks for a derivative."""
    x, w = problem()
    t = torch.ones_like(w)
    mine = tangent(fixed_point(Implicit(tol=TIGHT)), x, w, t)
    long = tangent(fixed_point(Unrolled(200)), x, w, t)
    torch.testing.assert_close(mine, long, rtol=1e-9, atol=1e-12)


def test_shine_has_no_forward_mode() -> None:
    x, w = problem()
    learnt = Forward(solver=Broyden(memory=50), tol=TIGHT, max_steps=50)
    with pytest.raises(GradientError, match=r"forward-mode.*Implicit\(\)"):
        tangent(fixed_point(SHINE(), learnt), x, w, torch.ones_like(w))


@pytest.mark.parametrize("estimator", [Implicit(tol=TIGHT), Implicit(tol=TIGHT, order=2)], ids=repr)
def test_a_tangent_of_a_backward_pass_is_refused(estimator: GradientEstimator) -> None:
    x, w = problem()

    def slope(x: Tensor, w: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(loss(fixed_point(estimator)(x, w)), x, create_graph=True)
        return out

    with forward_ad.dual_level(), pytest.raises(GradientError, match=r"forward-mode.*order=2"):
        slope(x, forward_ad.make_dual(w.detach(), torch.ones_like(w)))


def test_torch_func_takes_one_derivative() -> None:
    x, w = problem()
    run = lambda x, w: loss(fixed_point(Implicit(tol=TIGHT))(x, w))  # noqa: E731
    mine = torch.func.grad(run, argnums=(0, 1))(x.detach(), w.detach())
    for one, other in zip(mine, torch.autograd.grad(run(x, w), (x, w)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compact", [False, True])
def test_torch_func_under_autocast_and_compaction(compact: bool) -> None:
    x, w = (t.detach().float() for t in problem())
    gain = torch.linspace(0.1, 0.9, len(x))[:, None]

    def value(x: Tensor, w: Tensor) -> Tensor:
        forward = Forward("anderson", Tolerance(atol=0.0, rtol=1e-2), 100, compact=compact)
        estimator = Implicit(tol=Tolerance(atol=0.0, rtol=1e-2))
        f = lambda z, x, gain: (gain * torch.tanh(z @ w + x)).float()  # noqa: E731
        with torch.autocast("cpu", torch.bfloat16):
            z: Tensor = estimator.differentiate(f, torch.zeros_like(x), (x, gain), forward).z
        return loss(z)

    mine = torch.func.grad(value, argnums=(0, 1))(x, w)
    x, w = x.requires_grad_(), w.requires_grad_()
    for one, other in zip(mine, torch.autograd.grad(value(x, w), (x, w)), strict=True):
        assert float((one - other).norm() / other.norm()) < 3e-2


@pytest.mark.parametrize("transform", ["grad of grad", "jvp", "jacrev", "hessian", "autograd"])
def test_torch_func_is_refused_in_a_sentence_beyond_that(transform: str) -> None:
    x, w = (t.detach() for t in problem())
    run = lambda w: loss(fixed_point(Implicit(tol=TIGHT))(x, w))  # noqa: E731
    norm = lambda w: torch.func.grad(run)(w).square().sum()  # noqa: E731
    calls: dict[str, Callable[[], Any]] = {
        "grad of grad": lambda: torch.func.grad(norm)(w),
        "jvp": lambda: torch.func.jvp(run, (w,), (w,)),
        "jacrev": lambda: torch.func.jacrev(lambda w: fixed_point(Implicit(tol=TIGHT))(x, w))(w),
        "hessian": lambda: torch.func.hessian(run)(w),
        "autograd": lambda: torch.autograd.grad(norm(w.requires_grad_()), w),
    }
    refusal = r"torch\.func takes one.*Unrolled|torch\.func\.vmap does not allow"
    with pytest.raises((GradientError, StateError), match=refusal):
        calls[transform]()
