"""A cell that is not what it was when a backward pass comes: an error, never a wrong gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from deqgen import DEQ
from deqgen.gradients import (
    SHINE,
    GradientError,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    StochasticJFB,
    Unrolled,
)
from deqgen_solvers import Broyden
from tests.gradients.cells import EXACT as FORWARD
from tests.gradients.cells import TIGHT, Tanh, inputs, matrix

# Forward mode loads torch's decompositions, which warn.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")

EXACT = [Implicit(tol=TIGHT), Phantom(200, 1.0, "neumann"), SHINE(refine=60)]
ANEW = [Unrolled(6, checkpoint=True), Reversible(3)]


class Gained(Tanh):
    """With a gain for each sample, so that some are done before others."""

    def forward(self, z: Tensor, x: Tensor, gain: Tensor) -> Tensor:
        return super().forward(gain * z, x)


GAIN = torch.tensor([[0.05], [0.1], [1.0]], dtype=torch.float64)


def layer(estimator: GradientEstimator, compact: bool = False) -> DEQ:
    options: dict[str, Any] = {"tol": TIGHT, "max_steps": 60, "compact": compact}
    return DEQ(Gained(norm=0.9), solver=Broyden(memory=60), gradient=estimator, **options)


def other_weights() -> dict[str, Tensor]:
    return {"cell.weight": matrix(4, 0.4, 5), "cell.bias": torch.full((4,), 0.3).double()}


def slope(estimator: GradientEstimator, compact: bool = False) -> Callable[..., Tensor]:
    model, (_, x) = layer(estimator, compact), inputs()

    def value(weights: dict[str, Tensor]) -> Tensor:
        z: Tensor = functional_call(model, weights, (x.detach(), GAIN)).z
        return z.sin().sum()

    return value


@pytest.mark.parametrize("estimator", EXACT, ids=repr)
def test_torch_func_with_the_weights_of_functional_call(estimator: GradientEstimator) -> None:
    """They are in the module during the forward pass alone."""
    found = torch.func.grad(slope(estimator))(other_weights())
    exact = torch.func.grad(slope(Unrolled(300)))(other_weights())
    for name, one in found.items():
        torch.testing.assert_close(one, exact[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("through_func", [False, True])
@pytest.mark.parametrize(
    ("estimator", "compact"),
    [(Implicit("picard", TIGHT, 200), True), *((e, False) for e in ANEW)],
    ids=repr,
)
def test_what_is_evaluated_anew_after_functional_call_is_refused(
    estimator: GradientEstimator, compact: bool, through_func: bool
) -> None:
    value = slope(estimator, compact)
    if through_func:
        with pytest.raises(GradientError):
            torch.func.grad(value)(other_weights())
        return
    weights = {name: w.requires_grad_() for name, w in other_weights().items()}
    loss = value(weights)
    with pytest.raises(GradientError, match=r"functional_call.*[Uu]se"):
        loss.backward()


def test_weights_that_change_slowly_are_found_out_too() -> None:
    """A schedule of the user's own, say, which autograd cannot see."""

    class Scheduled(Tanh):
        scale = 1.0

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return super().forward(self.scale * z, x)

    cell = Scheduled()
    z = DEQ(cell, gradient=Unrolled(6, checkpoint=True))(inputs()[1]).z
    cell.scale = 0.99
    with pytest.raises(GradientError, match="weights were changed"):
        z.sum().backward()


def test_a_state_changed_in_place_is_no_change_of_the_cell() -> None:
    """Of a map that needs none of its images in the backward pass; else PyTorch itself refuses."""
    z0, x = inputs()

    def state(estimator: Unrolled) -> Tensor:
        run = estimator.differentiate(lambda z, x: 0.5 * z + x, z0, (x,), FORWARD)
        return run.states[-2].mul_(2.0).add_(1.0)

    (found,) = torch.autograd.grad(state(Unrolled(6, every=1, checkpoint=True)).sum(), x)
    (exact,) = torch.autograd.grad(state(Unrolled(6, every=1)).sum(), x)
    torch.testing.assert_close(found, exact)


def test_a_backward_pass_under_another_autocast() -> None:
    model, (_, x) = layer(Implicit(tol=TIGHT), compact=True), inputs()
    expected = torch.autograd.grad(model(x, GAIN).z.sum(), x)
    value = model(x, GAIN).z.sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(value, x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_random_numbers_of_steps_within_checkpoint_are_refused(reentrant: bool) -> None:
    x = inputs()[1]

    def run(estimator: StochasticJFB) -> Tensor:
        model = DEQ(Tanh(), gradient=estimator)
        z: Tensor = checkpoint(lambda x: model(x).z, x, use_reentrant=reentrant)
        return z

    value = run(StochasticJFB((0, 5), (1, 5))).sum()
    with pytest.raises(GradientError, match="evaluated anew"):
        value.backward()
    run(StochasticJFB((2, 2), (3, 3))).sum().backward()  # nothing to draw


def test_derivatives_all_at_once_are_refused() -> None:
    x = inputs()[1]
    run = lambda x: DEQ(Tanh(), tol=TIGHT)(x).z  # noqa: E731
    with pytest.raises(GradientError, match="one at a time"):
        torch.autograd.functional.jacobian(run, x, vectorize=True)
    assert torch.autograd.functional.jacobian(run, x).shape == (3, 4, 3, 4)


class Head(nn.Module):
    """A layer in evaluation mode below something that is trained."""

    def __init__(self, cell: Callable[..., Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1, dtype=torch.float64)
        self.layer = DEQ(cell, gradient=Unrolled(6)).eval()

    def forward(self, *args: Any) -> Tensor:
        return self.head(self.layer(*args, z0=torch.zeros(3, 4, dtype=torch.float64)).z).sum()


def test_evaluation_refuses_what_a_function_reaches_by_closure() -> None:
    w, x = matrix(4, 0.5, 0).requires_grad_(), inputs()[1].detach()
    value = Head(lambda z, x: torch.tanh(z @ w + x))(x)
    with pytest.raises(GradientError, match="evaluation mode"):
        value.backward()
    w.requires_grad_(False)
    Head(lambda z, x: torch.tanh(z @ w + x))(x).backward()  # the head alone


def test_evaluation_refuses_what_is_in_containers_and_transforms() -> None:
    w, x = matrix(4, 0.5, 0), inputs()[1].detach()
    head = Head(lambda z, told: torch.tanh(z @ w + told["x"]))
    with pytest.raises(GradientError, match="evaluation mode"):
        head({"x": x.clone().requires_grad_()}).backward()
    for transform in (torch.func.grad, torch.func.jacfwd):
        with pytest.raises(GradientError, match="evaluation mode"):
            transform(lambda x: head({"x": x}))(x)
    with torch.no_grad():
        head({"x": x})
