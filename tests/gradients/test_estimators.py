"""What estimators promise beyond the number itself, and what they refuse."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deqgen import DEQ
from deqgen.gradients import (
    JFB,
    SHINE,
    EquilibriumWarning,
    Forward,
    GradientError,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    Unrolled,
)
from deqgen_solvers import Broyden, Status, Tolerance
from tests.gradients.cells import EXACT, TIGHT, Tanh, gradients, inputs, loss

ALL = [
    Implicit(tol=TIGHT),
    Implicit(tol=TIGHT, order=2),
    Phantom(3, 0.5),
    Phantom(3, 0.5, "neumann"),
    JFB(),
    Unrolled(30),
    Unrolled(30, checkpoint=True),
    Reversible(30, beta=0.4),
    SHINE(refine=2),
]
ADJOINT = [Implicit(tol=TIGHT), Phantom(3, 0.5, "neumann"), SHINE()]
LEARNT = Forward(solver=Broyden(memory=60), tol=TIGHT, max_steps=60)
everyone = pytest.mark.parametrize("estimator", ALL, ids=repr)


def solved(estimator: GradientEstimator, cell: Any, z0: Tensor, *args: Tensor) -> Tensor:
    forward = LEARNT if isinstance(estimator, SHINE) else EXACT
    z: Tensor = estimator.differentiate(cell, z0, args, forward).z
    return z


class Counting(Tanh):
    calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(z, x)


def test_unrolled_supervises_every_iterate_and_no_more() -> None:
    cell, (z0, x) = Counting(), inputs()
    out = Unrolled(6).differentiate(cell, z0, (x,), EXACT)
    assert cell.calls == 6 == out.solution.nfe
    assert len(out.states) == 6
    assert out.z is out.states[-1]
    z = z0
    for state in out.states:
        z = cell(z, x)
        assert torch.equal(state, z)
    thinned = Unrolled(6, every=3).differentiate(cell, z0, (x,), EXACT)
    assert [s.tolist() for s in thinned.states] == [out.states[2].tolist(), out.states[5].tolist()]


def test_unrolled_takes_the_budget_of_the_call() -> None:
    z0, x = inputs()
    out = Unrolled().differentiate(Tanh(), z0, (x,), Forward(max_steps=4))
    assert len(out.states) == 4
    assert out.solution.steps.tolist() == [4, 4, 4]
    assert out.solution.status.tolist() == [int(Status.BUDGET)] * 3
    assert out.solution.residual is None


def test_jfb_is_one_undamped_phantom_step() -> None:
    cell, (z0, x) = Tanh(), inputs()
    for other in (Phantom(1, 1.0), Phantom(1, 1.0, "neumann")):
        mine = gradients(loss(solved(JFB(), cell, z0, x)), x, cell.weight)
        theirs = gradients(loss(solved(other, cell, z0, x)), x, cell.weight)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)


def test_the_answer_is_the_image_of_the_best_iterate() -> None:
    cell, (z0, x) = Tanh(norm=0.99), inputs()
    rough = Forward(solver="anderson", tol=Tolerance(atol=0, rtol=1e-3), max_steps=50)
    out = Implicit(tol=TIGHT).differentiate(cell, z0, (x,), rough)
    torch.testing.assert_close(out.z, out.solution.fz, rtol=0, atol=1e-15)
    residual = (cell(out.solution.z, x) - out.solution.z).norm(dim=1)
    torch.testing.assert_close(out.solution.residual, residual.detach())
    assert not out.solution.z.requires_grad


def test_one_evaluation_beyond_the_solve_is_recorded() -> None:
    cell, (z0, x) = Counting(), inputs()
    z = solved(Implicit(tol=TIGHT), cell, z0, x)
    spent = cell.calls
    assert spent == EXACT(Tanh(), z0, (x,)).nfe + 1
    z.sum().backward()
    assert cell.calls == spent  # the backward pass evaluates nothing anew


@everyone
def test_parameters_reached_by_closure(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh(), inputs()
    closed = gradients(loss(solved(estimator, lambda z: cell(z, x), z0)), x, cell.weight)
    passed = gradients(loss(solved(estimator, cell, z0, x)), x, cell.weight)
    for a, b in zip(closed, passed, strict=True):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0


@everyone
def test_a_cell_used_twice_before_one_backward(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh(), inputs()
    first, second = solved(estimator, cell, z0, x), solved(estimator, cell, z0, x.detach() + 1)
    both = gradients(loss(first) + 2 * loss(second), cell.weight)[0]
    one = gradients(loss(solved(estimator, cell, z0, x)), cell.weight)[0]
    two = gradients(2 * loss(solved(estimator, cell, z0, x.detach() + 1)), cell.weight)[0]
    torch.testing.assert_close(both, one + two, rtol=1e-12, atol=1e-12)
    nested = gradients(loss(solved(estimator, cell, z0, solved(estimator, cell, z0, x))), x)[0]
    assert nested.isfinite().all()


@everyone
def test_a_second_backward_gives_the_same_gradient(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh(), inputs()
    value = loss(solved(estimator, cell, z0, x))
    value.backward(retain_graph=True)
    once = cell.weight.grad.clone()
    value.backward()
    torch.testing.assert_close(cell.weight.grad, 2 * once, rtol=1e-14, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@everyone
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_numbers_are_the_same(
    estimator: GradientEstimator, mode: Any
) -> None:
    cell, (z0, x) = Tanh(), inputs()
    tracked = solved(estimator, cell, z0, x)
    with mode():
        plain = solved(estimator, cell, z0, x)
    assert tracked.requires_grad
    assert not plain.requires_grad
    torch.testing.assert_close(tracked.detach(), plain.clone(), rtol=0, atol=1e-12)


@everyone
def test_nothing_to_differentiate(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh().requires_grad_(False), inputs()
    assert not solved(estimator, cell, z0, x.detach()).requires_grad
    assert solved(estimator, cell, z0, x).requires_grad
    without_parameters = solved(estimator, lambda z, x: torch.tanh(0.3 * z + x), z0, x)
    assert gradients(without_parameters.sum(), x)[0].abs().min() > 0


@everyone
def test_a_cell_that_ignores_its_state(estimator: GradientEstimator) -> None:
    z0, x = inputs()
    z = solved(estimator, lambda z, x: x.exp(), z0, x)
    scale = 1 - 0.5**3 if isinstance(estimator, Phantom) and estimator.steps == 3 else 1.0
    if isinstance(estimator, Reversible):
        scale = 1 - 0.6**30
    torch.testing.assert_close(gradients(z.sum(), x)[0], scale * x.detach().exp())


@pytest.mark.parametrize(
    # SHINE learns nothing where there is nothing to solve; Reversible stays a short scheme.
    "estimator",
    [e for e in ALL if not isinstance(e, SHINE | Reversible)],
    ids=repr,
)
def test_a_start_at_the_fixed_point(estimator: GradientEstimator) -> None:
    """Early convergence, zero steps: the gradient is that of the point all the same."""
    cell, (z0, x) = Tanh(), inputs()
    star = EXACT(cell, z0, (x,)).fz
    if not isinstance(estimator, Unrolled):
        assert EXACT(cell, star, (x,)).steps.tolist() == [0, 0, 0]
    here = gradients(loss(solved(estimator, cell, star, x)), x)[0]
    there = gradients(loss(solved(estimator, cell, z0, x)), x)[0]
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", ADJOINT, ids=repr)
def test_double_backward_is_refused(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh(), inputs()
    value = loss(solved(estimator, cell, z0, x))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    for wanted in (x, cell.weight, cell.bias):
        with pytest.raises(GradientError, match=r"Unrolled\(steps\)"):
            torch.autograd.grad(grad.pow(2).sum(), wanted, retain_graph=True)
    head = torch.ones(4, dtype=torch.float64, requires_grad=True)
    value = (solved(estimator, cell, z0, x) * head).sum()
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(GradientError, match="beyond order 1"):
        torch.autograd.grad(grad.sum(), head)


def test_double_backward_through_unrolled_is_right() -> None:
    cell = Tanh(3)
    x = inputs(2, 3)[1]
    z0 = torch.zeros_like(x)
    assert torch.autograd.gradgradcheck(lambda x: solved(Unrolled(8), cell, z0, x), (x,))


def test_a_failed_forward_solve_warns() -> None:
    cell, (z0, x) = Tanh(norm=0.99), inputs()
    short = Forward(solver="picard", tol=TIGHT, max_steps=2)
    with pytest.warns(EquilibriumWarning, match="forward solve missed its tolerance"):
        Implicit(tol=TIGHT).differentiate(cell, z0, (x,), short)


def test_a_failed_backward_solve_warns() -> None:
    cell, (z0, x) = Tanh(norm=0.99), inputs()
    z = solved(Implicit(solver="picard", tol=TIGHT, max_steps=2), cell, z0, x)
    with pytest.warns(EquilibriumWarning, match="backward solve missed its tolerance"):
        z.sum().backward()


def test_a_warning_is_shown_once_for_each_line_of_the_caller() -> None:
    """Whatever the batch: the text holds no count, and the place is not inside the library."""
    x = torch.linspace(0, 30, 8).unsqueeze(1).requires_grad_()
    layer = DEQ(lambda z, x: torch.tanh(0.99 * z) + 1 / (1 + x), solver="picard", max_steps=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for size in (3, 8):
            z = layer(x[:size]).z
            z.sum().backward()
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1 and "forward solve missed its tolerance in some samples" in said[0]
    assert caught[0].filename == __file__


def test_a_warning_of_a_backward_pass_names_the_line_that_asked_for_it() -> None:
    x = torch.ones(2, 1, requires_grad=True)
    layer = DEQ(lambda z, x: torch.tanh(0.5 * z) + x, gradient=Implicit("picard", max_steps=1))
    z = layer(x).z
    with pytest.warns(EquilibriumWarning, match="backward solve missed its tolerance") as caught:
        z.sum().backward()
    assert caught[0].filename == __file__


def test_a_bare_budget_never_warns() -> None:
    cell, (z0, x) = Tanh(norm=0.9), inputs()
    budget = Forward(solver="picard", tol=None, max_steps=3)
    out = Implicit(solver="picard", tol=None, max_steps=3).differentiate(cell, z0, (x,), budget)
    out.z.sum().backward()
    assert x.grad.isfinite().all()
    assert out.solution.nfe == 3


@everyone
def test_autocast_weights_get_their_gradients(estimator: GradientEstimator) -> None:
    """The solve casts the weights without history; the recorded evaluation must not meet those."""
    cell = torch.nn.Linear(8, 8)
    with torch.no_grad():
        cell.weight.mul_(0.5)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    rough = Forward(solver="picard", tol=Tolerance(atol=0, rtol=3e-2), max_steps=50)
    if isinstance(estimator, Implicit):
        estimator = Implicit(solver="picard", tol=Tolerance(atol=0, rtol=3e-2))
    if isinstance(estimator, SHINE):
        rough = Forward(Broyden(memory=50), rough.tol, rough.max_steps)

    def weight_gradient(enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            f = lambda z, x: torch.tanh(cell(z)).to(z.dtype) + x  # noqa: E731
            z = estimator.differentiate(f, torch.zeros_like(x), (x,), rough).z
        return gradients(z.pow(2).sum(), cell.weight)[0]

    full, half = weight_gradient(False), weight_gradient(True)
    assert (full - half).norm() < 0.1 * full.norm()


def test_in_place_changes_of_the_answer_are_allowed() -> None:
    cell, (z0, x) = Tanh(), inputs()
    z = solved(Implicit(tol=TIGHT), cell, z0, x)
    z.mul_(2)
    expected = 2 * gradients(solved(Implicit(tol=TIGHT), cell, z0, x).sum(), x)[0]
    torch.testing.assert_close(gradients(z.sum(), x)[0], expected)


@everyone
def test_checkpointing_outside(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh(), inputs()
    run = lambda x: solved(estimator, cell, z0, x)  # noqa: E731
    plain = gradients(loss(run(x)), x, cell.weight)
    saved = gradients(loss(checkpoint(run, x, use_reentrant=False)), x, cell.weight)
    for a, b in zip(plain, saved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@everyone
def test_a_compiled_cell(estimator: GradientEstimator) -> None:
    cell, (z0, x) = Tanh(), inputs()
    compiled = torch.compile(cell, backend="eager")
    plain = gradients(loss(solved(estimator, cell, z0, x)), x, cell.weight)
    found = gradients(loss(solved(estimator, compiled, z0, x)), x, cell.weight)
    for a, b in zip(plain, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@everyone
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(estimator: GradientEstimator, mode: Any) -> None:
    """In training mode too: the same answer, of which nothing is recorded."""
    cell, (z0, x) = Tanh(), inputs()
    recorded = solved(estimator, cell, z0, x)
    with mode():
        plain = solved(estimator, cell, z0, x)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, recorded.detach(), rtol=1e-12, atol=1e-13)


@everyone
def test_estimators_are_frozen_and_comparable(estimator: GradientEstimator) -> None:
    assert copy.deepcopy(estimator) == estimator
    with pytest.raises(AttributeError):
        estimator.max_steps = 3  # type: ignore[attr-defined]
