"""What estimators keep between the forward and the backward pass, counted in the cell itself."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from deqgen.gradients import (
    EquilibriumWarning,
    Forward,
    GradientError,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    Unrolled,
)
from tests.gradients.cells import EXACT, Tanh, gradients, inputs, loss


class Watched(Tanh):
    """Counts the inner activations that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        inner = torch.exp(-(z**2))
        self.alive.add(inner)
        self.most = max(self.most, len(self.alive))
        return super().forward(z * inner, x)


def kept(estimator: GradientEstimator) -> tuple[int, int]:
    """Activations alive after the forward pass, and at most in both passes."""
    cell, (z0, x) = Watched(), inputs()
    z = estimator.differentiate(cell, z0.requires_grad_(), (x,), EXACT).z
    after = len(cell.alive)
    loss(z).backward()
    assert x.grad is not None
    return after, cell.most


def test_what_is_kept() -> None:
    assert kept(Unrolled(6)) == (6, 6)
    assert kept(Phantom(4, 0.5)) == (3, 3)  # the first of its points wants no gradient
    for few, many, after in (
        (Unrolled(6, checkpoint=True), Unrolled(24, checkpoint=True), 1),  # that of the last step
        (Reversible(3), Reversible(12), 0),
    ):
        assert kept(few) == kept(many)
        assert kept(few)[0] == after and kept(few)[1] <= 2
    for constant in (Implicit(), Phantom(9, 0.5, "neumann")):
        assert kept(constant) == (1, 1)


class Noisy(Tanh):
    """With dropout, and layers that autocast casts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        inner = self.linear.to(torch.float32)(z.float()) / 4
        return super().forward(nn.functional.dropout(z, 0.3) / 2 + inner.double(), x)


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputation_restores_random_numbers_and_autocast(autocast: bool) -> None:
    def slopes(checkpoint: bool) -> list[Tensor]:
        cell, (z0, x) = Noisy(), inputs()
        cell.load_state_dict({k: v for k, v in state.items()})
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            estimator = Unrolled(5, every=1, checkpoint=checkpoint)
            states = estimator.differentiate(cell, z0, (x,), EXACT).states
        value = sum(loss(z) for z in states)
        return gradients(value, x, cell.weight, cell.linear.weight)

    torch.manual_seed(3)
    state = Noisy().state_dict()
    for mine, plain in zip(slopes(True), slopes(False), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("autocast", [False, True])
def test_steps_taken_back_restore_random_numbers_and_autocast(autocast: bool) -> None:
    torch.manual_seed(3)
    cell, (z0, x), beta = Noisy(), inputs(), 0.4
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine = Reversible(4, beta).differentiate(cell, z0, (x,), EXACT).z
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = z = z0
        for _ in range(4):
            y = (1 - beta) * y + beta * cell(z, x)
            z = (1 - beta) * z + beta * cell(y, x)
    assert torch.equal(mine, z)
    wanted = (x, cell.weight, cell.linear.weight)
    for a, b in zip(gradients(loss(mine), *wanted), gradients(loss(z), *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_rounding_errors_on_the_way_back_are_noticed() -> None:
    cell, (z0, x) = Tanh(), inputs()
    good = Reversible(10, 0.5).differentiate(cell, z0, (x,), Forward()).z
    gradients(loss(good), x)  # warnings are errors
    worse = Reversible(12, 0.8).differentiate(cell, z0, (x,), Forward()).z
    with pytest.warns(EquilibriumWarning, match="rounding errors"):
        gradients(loss(worse), x)
    lost = Reversible(25, 0.8).differentiate(cell, z0, (x,), Forward()).z
    with pytest.raises(GradientError, match="rounding errors"):
        gradients(loss(lost), x)
