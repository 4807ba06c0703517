"""The Jacobian penalty: what it estimates, what it costs, what minimising it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deqgen.gradients import Phantom, Unrolled
from deqgen.layers import DEQ, Block, VariationalDropout, fixed_weights, weight_norm
from deqgen.training import jacobian_penalty
from deqgen_solvers import Tolerance
from deqgen_solvers.diagnostics import spectral_radius

F64 = torch.float64
TIGHT = Tolerance(atol=0.0, rtol=1e-9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Cell(nn.Module):
    """z -> tanh(A z + x), with A of spectral radius ``radius``."""

    def __init__(self, radius: float = 0.9, size: int = 5, seed: int = 0) -> None:
        super().__init__()
        draw = torch.randn(size, size, generator=seeded(seed), dtype=F64)
        self.weight = nn.Parameter(radius * draw / torch.linalg.eigvals(draw).abs().max())
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(z @ self.weight.T + x)


def inputs(batch: int = 4, size: int = 5, seed: int = 1) -> Tensor:
    return 0.3 * torch.randn(batch, size, generator=seeded(seed), dtype=F64)


def jacobians(cell: Cell, z: Tensor, x: Tensor) -> Tensor:
    """(B, N, N), by hand."""
    slope = 1 - torch.tanh(z @ cell.weight.T + x) ** 2
    return slope.unsqueeze(2) * cell.weight


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6))
def test_its_expectation_is_the_frobenius_norm(seed: int, size: int) -> None:
    """Within 5 standard deviations, which are known: Var v'Mv = 2 sum_{i != j} M_ij^2 for signs."""
    cell, x, probes = Cell(size=size, seed=seed), inputs(size=size, seed=seed + 1), 400
    layer = DEQ(cell, tol=TIGHT, max_steps=200)
    with torch.no_grad():
        equilibrium = layer(x)
        found = jacobian_penalty(cell, equilibrium, (x,), generator=seeded(seed), probes=probes)
        j = jacobians(cell, equilibrium.z, x)
    exact = j.square().sum(dim=(1, 2)).mean() / size
    m = j @ j.mT
    off = m.square().sum(dim=(1, 2)) - m.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    deviation = (2 * off.sum() / probes).sqrt() / (len(x) * size)
    assert abs(float(found - exact)) <= 5 * float(deviation) + 1e-12


@pytest.mark.parametrize("gradient", ["implicit", "jfb", Phantom(2, 0.5), Unrolled(30)])
def test_any_estimator_and_one_evaluation_whatever_the_steps(gradient: Any) -> None:
    x = inputs().requires_grad_()
    layer = DEQ(Cell(), gradient=gradient, tol=TIGHT, max_steps=30)
    equilibrium = layer(x)
    before = layer.cell.calls
    penalty = jacobian_penalty(layer.cell, equilibrium, (x,), generator=seeded(0), probes=3)
    assert layer.cell.calls == before + 1
    assert penalty.shape == () and penalty.dtype == F64
    penalty.backward()
    assert layer.cell.calls == before + 1
    assert float(layer.cell.weight.grad.abs().max()) > 0 and x.grad is not None


def test_its_gradient_is_that_of_the_norm_at_a_point_held_fixed() -> None:
    """A one-dimensional state has one sign up to a factor: the estimate is the norm itself."""
    cell, x = Cell(size=1), inputs(size=1)
    equilibrium = DEQ(cell, tol=TIGHT)(x)
    penalty = jacobian_penalty(cell, equilibrium, (x,), generator=seeded(0))
    exact = jacobians(cell, equilibrium.z.detach(), x).square().mean()
    torch.testing.assert_close(penalty, exact)
    (found,), (truth,) = (torch.autograd.grad(value, cell.weight) for value in (penalty, exact))
    torch.testing.assert_close(found, truth)


def test_minimising_it_shortens_solves() -> None:
    """Regression through an equilibrium, with and without; the fit is no worse than twice."""
    x, target = inputs(16), inputs(16, seed=9)
    found: dict[float, tuple[float, float, float]] = {}
    for weight in (0.0, 0.5):
        layer = DEQ(Cell(1.1), solver="picard", gradient=Unrolled(10), tol=TIGHT, max_steps=500)
        optimizer, generator = torch.optim.Adam(layer.parameters(), lr=0.02), seeded(3)
        for _ in range(40):
            optimizer.zero_grad()
            equilibrium = layer(x)
            fit = (equilibrium.z - target).square().mean()
            penalty = jacobian_penalty(layer.cell, equilibrium, (x,), generator=generator)
            (fit + weight * penalty).backward()
            optimizer.step()
        with torch.no_grad():
            equilibrium = layer.eval()(x)
        radius = spectral_radius(layer.cell, equilibrium.z, (x,)).radius
        steps = equilibrium.solution.steps.double()
        found[weight] = float(radius.max()), float(steps.mean()), float(fit.detach())
    plain, penalised = found[0.0], found[0.5]
    assert penalised[0] < 0.7 * plain[0]
    assert penalised[1] < 0.7 * plain[1]
    assert penalised[2] < 2 * plain[2]


def test_draws_come_from_the_generator_alone() -> None:
    x, layer = inputs(), DEQ(Cell())
    equilibrium, generator = layer(x), seeded(0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (
        jacobian_penalty(layer.cell, equilibrium, (x,), generator=generator) for _ in range(2)
    )
    assert first != second
    assert first == jacobian_penalty(layer.cell, equilibrium, (x,), generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_fused_attention_refuses_and_plain_attention_does_not() -> None:
    block = Block(8, 2, 2.0)
    layer = DEQ(lambda z, x: 0.1 * block(z) + x, tol=None, max_steps=4)
    x = torch.randn(2, 6, 8, generator=seeded(0))
    equilibrium = layer(x)
    with pytest.raises(RuntimeError, match="is not implemented"):
        jacobian_penalty(layer.cell, equilibrium, (x,), generator=seeded(0)).backward()
    with sdpa_kernel(SDPBackend.MATH):
        jacobian_penalty(layer.cell, equilibrium, (x,), generator=seeded(0)).backward()
    assert float(block.attn.qkv.weight.grad.abs().max()) > 0


def test_with_dropout_and_normalised_weights() -> None:
    """The other two means against a cell that will not hold still, in one step of training."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5, dtype=F64)
            self.dropout = VariationalDropout(0.3)

        def forward(self, z: Tensor, x: Tensor, mask: Tensor) -> Tensor:
            return 0.3 * torch.tanh(self.linear(self.dropout(z, mask))) + x

    cell = weight_norm(Dropped())
    layer, x, generator = DEQ(cell, tol=TIGHT), inputs(), seeded(0)
    args = (x, cell.dropout.draw(x, generator))
    with fixed_weights(layer):
        equilibrium = layer(*args)
        penalty = jacobian_penalty(cell, equilibrium, args, generator=generator)
        (equilibrium.z.square().mean() + penalty).backward()
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_edges() -> None:
    layer, x = DEQ(Cell()), inputs(0)
    empty = jacobian_penalty(layer.cell, layer(x), (x,), generator=seeded(0))
    assert empty.shape == () and float(empty) == 0
    x = inputs()
    with torch.no_grad():
        value = jacobian_penalty(layer.cell, layer(x), (x,), generator=seeded(0))
    assert not value.requires_grad
    budget, x = DEQ(Cell().float(), tol=None, max_steps=5), inputs().float()
    with torch.autocast("cpu", torch.bfloat16):
        value = jacobian_penalty(budget.cell, budget(x), (x,), generator=seeded(0))
    assert value.dtype == torch.float32
    with pytest.raises(ValueError, match="probes must be at least 1"):
        jacobian_penalty(budget.cell, budget(x), (x,), generator=seeded(0), probes=0)
