"""The table of docs/how_to_choose_a_gradient.md: what further derivatives each estimator gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from deqgen.gradients import (
    JFB,
    SHINE,
    Forward,
    GradientError,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    StochasticJFB,
    Unrolled,
)
from deqgen_solvers import Broyden, StateError
from tests.gradients.cells import EXACT, TIGHT, matrix

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to_choose_a_gradient.md"

LEARNT = Forward(Broyden(memory=60), TIGHT, 60)
ESTIMATORS: dict[str, Callable[[int], GradientEstimator]] = {
    "Implicit()": lambda _: Implicit(tol=TIGHT),
    "Implicit(order=2)": lambda _: Implicit(tol=TIGHT, order=2),
    "Phantom(k)": lambda k: Phantom(k),
    'Phantom(k, mode="neumann")': lambda k: Phantom(k, mode="neumann"),
    "JFB()": lambda _: JFB(),
    "Unrolled(k)": lambda k: Unrolled(k),
    "Unrolled(k, checkpoint=True)": lambda k: Unrolled(k, checkpoint=True),
    "Reversible(k)": lambda k: Reversible(k),
    "StochasticJFB()": lambda k: StochasticJFB((30, 30), (k, k)),
    "SHINE(k)": lambda k: SHINE(refine=k - 2),
}
X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
WEIGHT = matrix(3, 0.4, 0)


def cell(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ WEIGHT + x)


def equilibrium(estimator: GradientEstimator) -> Callable[[Tensor], Tensor]:
    forward = LEARNT if isinstance(estimator, SHINE) else EXACT

    def run(x: Tensor) -> Tensor:
        z: Tensor = estimator.differentiate(cell, torch.zeros_like(x), (x,), forward).z
        return z

    return run


def double_backward(run: Callable[[Tensor], Tensor]) -> Tensor:
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run(x).sin().sum(), x, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), x)[0]


def forward_mode(run: Callable[[Tensor], Tensor]) -> Tensor:
    with forward_ad.dual_level():
        pushed: Tensor = forward_ad.unpack_dual(run(forward_ad.make_dual(X, X.cos()))).tangent
    return pushed


def func_grad(run: Callable[[Tensor], Tensor]) -> Tensor:
    found: Tensor = torch.func.grad(lambda x: run(x).sin().sum())(X)
    return found


def func_vmap(run: Callable[[Tensor], Tensor]) -> Tensor:
    found: Tensor = torch.func.vmap(lambda row: run(row[None])[0])(X)
    return found


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "double backward": double_backward,
    "forward mode": forward_mode,
    "torch.func.grad": func_grad,
    "torch.func.vmap": func_vmap,
}


def table() -> list[tuple[str, str, str]]:
    """(estimator, transform, what the page says of it)."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    told = [re.sub("`", "", line).strip("| ").split(" | ") for line in lines]
    told = [cells for cells in told if cells[0] in ESTIMATORS and len(cells) == 5]
    return [(cells[0], *pair) for cells in told for pair in zip(TRANSFORMS, cells[1:], strict=True)]


def test_the_page_has_all_of_them() -> None:
    assert {(name, transform) for name, transform, _ in table()} == {
        (name, transform) for name in ESTIMATORS for transform in TRANSFORMS
    }


@pytest.mark.parametrize(("name", "transform", "says"), table())
def test_what_the_page_says(name: str, transform: str, says: str) -> None:
    def found(k: int) -> Tensor:
        return TRANSFORMS[transform](equilibrium(ESTIMATORS[name](k)))

    if says == "refuses":
        # vmap has no random numbers unless told how, which PyTorch says itself
        errors: Any = (GradientError, StateError)
        if name == "StochasticJFB()":
            errors = RuntimeError
        with pytest.raises(errors, match=r"[Uu]se |call solve once|randomness"):
            found(3)
        return
    star = TRANSFORMS[transform](equilibrium(Unrolled(200)))
    if says == "exact":
        torch.testing.assert_close(found(1), star, rtol=1e-9, atol=1e-11)
        return
    assert says == "of its steps"
    if name == "JFB()":
        few, many = found(1), None
    else:
        few, many = found(2), found(20)
    assert (few - star).norm() > 1e-3 * star.norm()
    if many is not None:
        assert (many - star).norm() < 0.1 * (few - star).norm()
