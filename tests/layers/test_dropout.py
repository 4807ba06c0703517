"""Variational dropout: one mask a solve, an argument of the cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deqgen.gradients import Unrolled
from deqgen.layers import DEQ, ShapeError, VariationalDropout
from deqgen_solvers import Tolerance, solve

F64 = torch.float64
TIGHT = Tolerance(atol=0.0, rtol=1e-12)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contraction(size: int = 4) -> Tensor:
    a = torch.randn(size, size, generator=seeded(7), dtype=F64)
    return 0.4 * a / torch.linalg.matrix_norm(a, 2)


class Cell(nn.Module):
    """Affine, with two call sites of one dropout layer: z -> drop(A drop(z)) + x."""

    def __init__(self, p: float = 0.5, recompute: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(contraction())
        self.dropout = VariationalDropout(p)
        self.recompute = recompute

    def forward(self, z: Tensor, x: Tensor, inner: Tensor | None, outer: Tensor | None) -> Tensor:
        if self.recompute:
            return checkpoint(self.apply_once, z, x, inner, outer, use_reentrant=False)
        return self.apply_once(z, x, inner, outer)

    def apply_once(
        self, z: Tensor, x: Tensor, inner: Tensor | None, outer: Tensor | None
    ) -> Tensor:
        return self.dropout(self.dropout(z, inner) @ self.weight.T, outer) + x


def problem(batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, 4) and two masks (B, 4)."""
    x = torch.randn(batch, 4, generator=seeded(1), dtype=F64)
    dropout, generator = VariationalDropout(0.5), seeded(2)
    inner, outer = dropout.draw(x, generator), dropout.draw(x, generator)
    assert inner is not None and outer is not None
    return x, inner, outer


def exact(cell: Cell, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """The fixed point by linear algebra: (I - 4 diag(outer) A diag(inner))^-1 x, as p = 1/2."""
    a = 4 * outer.unsqueeze(2) * cell.weight * inner.unsqueeze(1)  # (B, 4, 4)
    return torch.linalg.solve(torch.eye(4, dtype=F64) - a, x.unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize("gradient", ["implicit", Unrolled(300)])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_solve_has_the_fixed_point_of_one_mask_and_its_gradient(
    gradient: Any, recompute: bool
) -> None:
    """Recomputed or not: the backward pass meets the mask of its own forward pass."""
    x, inner, outer = problem()
    layer = DEQ(Cell(recompute=recompute), gradient=gradient, tol=TIGHT, max_steps=300)
    with torch.no_grad():
        layer.cell.weight.div_(2)  # with both masks the map is 4 A at most
    z = layer(x, inner, outer).z
    torch.testing.assert_close(z, exact(layer.cell, x, inner, outer), rtol=1e-9, atol=1e-11)
    (found,) = torch.autograd.grad(z.square().sum(), layer.cell.weight)
    wanted = exact(layer.cell, x, inner, outer).square().sum()
    (truth,) = torch.autograd.grad(wanted, layer.cell.weight)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def test_another_mask_has_another_fixed_point() -> None:
    """So a mask drawn anew in each evaluation would leave nothing to converge to."""
    x, inner, outer = problem()
    cell = Cell()
    assert not torch.allclose(exact(cell, x, inner, outer), exact(cell, x, outer, inner))


def test_rows_that_leave_the_batch_take_their_masks_along() -> None:
    x, inner, outer = problem(batch=9)
    x = x * torch.logspace(-9, 0, 9, dtype=F64).unsqueeze(1)  # rows finish at different times
    cell, tol = Cell(), Tolerance(atol=1e-10, rtol=0.0)
    with torch.no_grad():
        cell.weight.div_(2)
        args, zero = (x, inner, outer), torch.zeros_like(x)
        whole = solve(cell, zero, args, "picard", tol=tol, max_steps=200)
        gathered = solve(cell, zero, args, "picard", tol=tol, max_steps=200, compact=True)
    assert len(whole.steps.unique()) > 2 and bool(whole.converged.all())
    assert torch.equal(gathered.z, whole.z)


@given(
    p=st.floats(0.0, 0.9),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, F64]),
)
def test_units_are_dropped_or_scaled(p: float, seed: int, dtype: torch.dtype) -> None:
    dropout = VariationalDropout(p)
    x = torch.ones(3, 50, dtype=dtype)
    mask = dropout.draw(x, seeded(seed))
    y = dropout(x, mask)
    assert y.dtype == dtype and y.shape == x.shape
    scaled = torch.tensor(1 / (1 - p), dtype=dtype)
    assert bool(((y == 0) | (y == scaled)).all())
    assert bool((y == 0).any()) or p < 0.3


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_is_p_and_the_mean_is_kept(p: float) -> None:
    dropout = VariationalDropout(p)
    x = torch.ones(20, 5000, dtype=F64)
    y = dropout(x, dropout.draw(x, seeded(0)))
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float((y == 0).double().mean()) - p) < 5 * deviation
    assert abs(float(y.mean()) - 1) < 5 * deviation / (1 - p)


@pytest.mark.parametrize(
    ("shape", "dims", "expected"),
    [
        ((4, 3, 5, 5), (2, 3), (4, 3, 1, 1)),
        ((4, 3, 5, 5), (-1, -2), (4, 3, 1, 1)),
        ((4, 6, 8), (1,), (4, 1, 8)),
        ((4, 6, 8), (), (4, 6, 8)),
        ((4,), (), (4,)),
        ((0, 6), (), (0, 6)),
    ],
)
def test_one_draw_along_dims(
    shape: tuple[int, ...], dims: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    dropout = VariationalDropout(0.5, dims)
    x = torch.ones(shape)
    mask = dropout.draw(x, seeded(0))
    assert mask is not None and tuple(mask.shape) == expected
    y = dropout(x, mask)
    assert y.shape == x.shape
    for dim in dims:
        assert torch.equal(y, y.narrow(dim, 0, 1).expand_as(y))


def test_a_mask_is_a_function_of_its_generators() -> None:
    dropout, x = VariationalDropout(0.5), torch.ones(4, 30)
    mask = dropout.draw(x, seeded(3))
    again = dropout.draw(x[:2].double(), seeded(3))
    assert mask is not None and again is not None
    assert torch.equal(mask[:2], again)  # neither batch mates nor dtype matter
    assert not torch.equal(mask[0], mask[1])
    own = dropout.draw(x, [seeded(s) for s in (1, 2, 1, 3)])
    assert own is not None and torch.equal(own[0], own[2]) and not torch.equal(own[0], own[1])
    before = torch.get_rng_state()
    dropout(x, dropout.draw(x, seeded(3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_dropped_or_drawn_in_evaluation_or_for_p_zero() -> None:
    x, generator = torch.randn(3, 4), seeded(0)
    before = generator.get_state()
    for dropout in (VariationalDropout(0.5).eval(), VariationalDropout(0.0)):
        mask = dropout.draw(x, generator)
        assert mask is None
        assert dropout(x, mask) is x
    assert torch.equal(generator.get_state(), before)
    layer = DEQ(Cell(), tol=TIGHT).eval()
    assert bool(layer(x.double(), None, None).solution.converged.all())


def test_a_mask_decides_whatever_the_mode() -> None:
    x, mask = torch.ones(2, 2), torch.tensor([[True, False], [False, True]])
    dropout = VariationalDropout(0.5).eval()
    assert dropout(x, mask).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_autocast_keeps_the_map_fixed() -> None:
    x, inner, outer = problem()
    layer = DEQ(Cell(), tol=None, max_steps=3).float()
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (layer(x.float(), inner, outer).z for _ in range(2))
        product = x.float() @ layer.cell.weight.T
        assert layer.cell.dropout(product, inner).dtype == product.dtype == torch.bfloat16
    assert torch.equal(first, second) and first.dtype == torch.float32


def test_nan_is_not_hidden() -> None:
    x = torch.full((1, 2), torch.nan)
    assert bool(VariationalDropout(0.5)(x, torch.tensor([[True, False]])).isnan().all())


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_p_must_be_a_share(p: float) -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 1\), got"):
        VariationalDropout(p)


@pytest.mark.parametrize("dims", [(1,), (-1,), (-3,), (2,)])
def test_dims_that_a_tensor_does_not_have(dims: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="names dimension"):
        VariationalDropout(0.5, dims).draw(torch.ones(3), seeded(0))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="each sample needs its own mask"):
        VariationalDropout(0.5, dims=(0, 1))
    dropout, x = VariationalDropout(0.5), torch.ones(3, 4)
    with pytest.raises(ValueError, match="needs a mask in training"):
        dropout(x, None)
    with pytest.raises(TypeError, match="holds booleans"):
        dropout(x, x)
    with pytest.raises(ShapeError, match=r"shape \(1, 4\), but .* needs \(3, 4\)"):
        dropout(x, torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="no samples"):
        dropout.draw(torch.tensor(1.0), seeded(0))
    with pytest.raises(ValueError, match="2 generators for 3 samples"):
        dropout.draw(x, [seeded(0), seeded(1)])
    with pytest.raises(TypeError, match=r"must be a torch\.Generator"):
        dropout.draw(x, [1, 2, 3])  # type: ignore[list-item]
    assert "p=0.5, dims=()" in repr(dropout)
