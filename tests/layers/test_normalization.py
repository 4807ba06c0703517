"""Weight and spectral normalisation of a cell, evaluated once a solve."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from deqgen.gradients import Reversible, Unrolled
from deqgen.layers import (
    DEQ,
    Block,
    fixed_weights,
    remove_norm,
    spectral_norm,
    weight_norm,
)
from deqgen_solvers import Tolerance

F64 = torch.float64
TIGHT = Tolerance(atol=0.0, rtol=1e-12)
NORMS = [weight_norm, spectral_norm]
Norm = Callable[..., Any]


class Cell(nn.Module):
    """z -> 0.8 tanh(A z) + x, a contraction if the spectral norm of A is at most 1."""

    def __init__(self, scale: float = 1.0, recompute: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6, dtype=F64)
        self.recompute = recompute
        with torch.no_grad():
            draw = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
            self.linear.weight.copy_(scale * draw / torch.linalg.matrix_norm(draw, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        if self.recompute:
            return checkpoint(self.apply_once, z, x, use_reentrant=False)
        return self.apply_once(z, x)

    def apply_once(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.8 * torch.tanh(self.linear(z)) + x


class Mixed(nn.Module):
    """A cell with a convolution, a linear map and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 5, bias=False)


def inputs(batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1), dtype=F64)


def startled(cell: Cell) -> Cell:
    """The cell after a large step of an optimizer: power iteration has yet to catch up."""
    with torch.no_grad():
        behind = cell.linear.parametrizations.weight
        original = behind.original if hasattr(behind, "original") else behind.original1
        generator = torch.Generator().manual_seed(5)
        original.copy_(torch.randn(original.shape, generator=generator, dtype=F64))
    return cell


# ------------------------------------------------------------------------------ what a weight is


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_weight_norm_keeps_the_weights_and_parts_length_from_direction(
    seed: int, scale: float
) -> None:
    linear = nn.Linear(4, 3, dtype=F64)
    draw = scale * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    with torch.no_grad():
        linear.weight.copy_(draw)
    weight_norm(linear)
    torch.testing.assert_close(linear.weight, draw, rtol=1e-12, atol=0)
    length, direction = linear.parametrizations.weight.parameters()
    torch.testing.assert_close(length.flatten(), draw.norm(dim=1), rtol=1e-12, atol=0)
    with torch.no_grad():
        direction.mul_(7)
    torch.testing.assert_close(linear.weight, draw, rtol=1e-12, atol=0)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_spectral_norm_divides_by_the_largest_singular_value(seed: int, scale: float) -> None:
    linear = nn.Linear(4, 3, dtype=F64)
    draw = scale * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    with torch.no_grad():
        linear.weight.copy_(draw)
    spectral_norm(linear, power_iterations=200)
    with fixed_weights(linear):
        found = linear.weight.clone()
    gap = torch.linalg.svdvals(draw)  # power iteration converges as (second/first)^2 a step
    rate = float(gap[1] / gap[0]) ** 2
    wanted = draw / gap[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9 + 100 * rate**200, atol=1e-12)


def test_a_convolution_is_normalised_as_a_matrix() -> None:
    module = spectral_norm(Mixed(), power_iterations=200)
    with torch.no_grad():
        top = torch.linalg.matrix_norm(module.conv.weight.flatten(1), 2)
    assert float(top) == pytest.approx(1.0, abs=1e-5)
    conv = nn.Conv2d(3, 4, 3)
    kept = conv.weight.detach().clone()
    weight_norm(conv)
    torch.testing.assert_close(conv.weight, kept)
    lengths = conv.parametrizations.weight.original0
    torch.testing.assert_close(lengths.flatten(), kept.flatten(1).norm(dim=1))


def test_every_or_chosen_weights() -> None:
    everything = spectral_norm(Mixed())
    assert parametrize.is_parametrized(everything.conv) and parametrize.is_parametrized(
        everything.head
    )
    assert not parametrize.is_parametrized(everything.norm)
    some = weight_norm(spectral_norm(Mixed(), ["conv"]), ["head"])
    assert set(some.state_dict()) == {
        "conv.bias",
        "conv.parametrizations.weight.original",
        "conv.parametrizations.weight.0._u",
        "conv.parametrizations.weight.0._v",
        "norm.weight",
        "norm.bias",
        "head.parametrizations.weight.original0",
        "head.parametrizations.weight.original1",
    }
    block = weight_norm(Block(8, 2, 2.0))
    assert sum(parametrize.is_parametrized(part) for part in block.modules()) == 4


def test_the_start_of_power_iteration_is_no_draw_from_the_global_generator() -> None:
    cell = Cell()
    twin = copy.deepcopy(cell)
    before = torch.get_rng_state()
    spectral_norm(cell)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    spectral_norm(twin)
    for name, value in cell.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


# --------------------------------------------------------------------------------- once a solve


def test_a_spectral_norm_in_training_changes_the_map_unless_its_weights_are_fixed() -> None:
    cell, x = startled(spectral_norm(Cell())), inputs()
    z = torch.zeros_like(x).add(0.3)
    with torch.no_grad():
        assert not torch.equal(cell(z, x), cell(z, x))  # the trap
        with fixed_weights(cell):
            assert torch.equal(cell(z, x), cell(z, x))
        assert not torch.equal(cell(z, x), cell(z, x))
        cell.eval()
        assert torch.equal(cell(z, x), cell(z, x))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gradient", ["implicit", "jfb", Unrolled(200)])
def test_a_solve_takes_one_evaluation_of_the_weights(norm: Norm, gradient: Any) -> None:
    cell = startled(norm(Cell()))
    with torch.no_grad():
        if norm is weight_norm:
            cell.linear.parametrizations.weight.original0.fill_(0.4)
    layer = DEQ(cell, gradient=gradient, tol=TIGHT, max_steps=200)
    taken: list[Tensor] = []
    cell.linear.parametrizations.weight[0].register_forward_hook(
        lambda _module, _inputs, output: taken.append(output)
    )
    with fixed_weights(layer):
        equilibrium = layer(inputs())
        again = cell(equilibrium.z, inputs())
    assert len(taken) == 1
    torch.testing.assert_close(again, equilibrium.z, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_reaches_what_is_behind_the_weights(norm: Norm, recompute: bool) -> None:
    """As though the weight were computed by hand and the solve unrolled."""
    cell, x = startled(norm(Cell(recompute=recompute))), inputs()
    if norm is weight_norm:
        with torch.no_grad():
            cell.linear.parametrizations.weight.original0.fill_(0.4)
    layer = DEQ(cell, tol=TIGHT, max_steps=200)
    behind = list(cell.linear.parametrizations.weight.parameters())
    with fixed_weights(layer):
        found = torch.autograd.grad(layer(x).z.square().sum(), behind)
    cell.eval()  # the power iteration has taken its step
    weight, z = cell.linear.weight, torch.zeros_like(x)
    for _ in range(300):
        z = 0.8 * torch.tanh(z @ weight.T + cell.linear.bias) + x
    truth = torch.autograd.grad(z.square().sum(), behind)
    for one, other in zip(found, truth, strict=True):
        assert float(other.abs().max()) > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_cache_filled_by_the_solver_has_no_history() -> None:
    """Why ``fixed_weights`` is more than ``cached()``: a gradient would be missing in silence."""
    cell = weight_norm(Cell(0.5), ["linear"])
    behind = cell.linear.parametrizations.weight.original1
    function = DEQ(lambda z, x: cell(z, x), tol=TIGHT)
    with parametrize.cached():
        function(inputs()).z.sum().backward()
    assert behind.grad is None
    with fixed_weights(cell):
        function(inputs()).z.sum().backward()
    expected, behind.grad = behind.grad, None
    with parametrize.cached():
        DEQ(cell, tol=TIGHT)(inputs()).z.sum().backward()  # the layer knows this cell
    torch.testing.assert_close(behind.grad, expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gradient", [Unrolled(6, checkpoint=True), Reversible(3)], ids=repr)
def test_estimators_that_evaluate_anew_use_the_same_weights(norm: Norm, gradient: Any) -> None:
    cell, x = startled(norm(Cell())), inputs()
    behind = list(cell.linear.parametrizations.weight.parameters())
    with fixed_weights(cell):
        mine = torch.autograd.grad(DEQ(cell, gradient=gradient)(x).z.square().sum(), behind)
    cell.eval()  # the power iteration has taken its step
    y = z = torch.zeros_like(x)
    for _ in range(6 if isinstance(gradient, Unrolled) else 3):
        if isinstance(gradient, Unrolled):
            z = cell(z, x)
        else:
            y = (y + cell(z, x)) / 2
            z = (z + cell(y, x)) / 2
    plain = torch.autograd.grad(z.square().sum(), behind)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_an_evaluation_without_gradients_may_open_the_weights() -> None:
    layer = DEQ(weight_norm(Cell(0.5)), tol=TIGHT)
    with torch.no_grad(), fixed_weights(layer):
        assert not layer(inputs()).z.requires_grad
        with torch.enable_grad():
            layer(inputs()).z.sum().backward()
    assert layer.cell.linear.parametrizations.weight.original1.grad is not None
    with torch.inference_mode(), fixed_weights(layer.eval()):
        assert bool(layer(inputs()).solution.converged.all())


def test_new_weights_after_the_end() -> None:
    cell = weight_norm(Cell(0.5))
    with fixed_weights(cell):
        before = cell.linear.weight
        assert cell.linear.weight is before
    with torch.no_grad():
        cell.linear.parametrizations.weight.original0.mul_(2)
    with fixed_weights(cell):
        torch.testing.assert_close(cell.linear.weight, 2 * before)
    with pytest.raises(ZeroDivisionError), fixed_weights(cell):
        raise ZeroDivisionError
    assert cell.linear.weight is not cell.linear.weight  # nothing is cached any more


class Squared(nn.Module):
    def forward(self, root: Tensor) -> Tensor:
        return root @ root.T


def test_any_parametrisation_is_evaluated_once_and_not_rounded_by_autocast() -> None:
    cell = Cell().float()
    parametrize.register_parametrization(cell.linear, "weight", Squared())
    with torch.autocast("cpu", torch.bfloat16), fixed_weights(cell):
        found = cell.linear.weight
        assert found is cell.linear.weight
    assert found.dtype == torch.float32
    assert torch.equal(found, cell.linear.weight)


def test_spectral_norms_hold_a_cell_to_a_contraction_through_training() -> None:
    """Towards targets that no contraction reaches; the plain cell is driven to larger weights."""
    top: dict[bool, float] = {}
    for normed in (True, False):
        cell = Cell()
        cell = spectral_norm(cell, power_iterations=5) if normed else cell
        layer = DEQ(cell, gradient=Unrolled(8))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(40):
            optimizer.zero_grad()
            with fixed_weights(layer):
                z = layer(inputs()).z
                (z - 9 * inputs().sign()).square().mean().backward()
            optimizer.step()
        layer.eval()
        top[normed] = float(torch.linalg.matrix_norm(cell.linear.weight, 2).detach())
    assert top[True] < 1.05 < 1.2 < top[False]


# ------------------------------------------------------------------------- copies and their files


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "replicate", [copy.deepcopy, lambda cell: pickle.loads(pickle.dumps(cell))]
)
def test_a_copy_is_the_same_map_and_has_its_own_weights(norm: Norm, replicate: Any) -> None:
    cell, x = startled(norm(Cell())), inputs()
    cell.linear.parametrizations.weight[0].eval()
    twin = replicate(replicate(cell))
    assert twin.linear.parametrizations.weight[0].training is False
    cell.eval(), twin.eval()
    assert isinstance(twin.linear, nn.Linear)
    assert torch.equal(twin(x, x), cell(x, x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.equal(twin(x, x), cell(x, x))
    remove_norm(twin)
    assert type(twin.linear) is nn.Linear


@pytest.mark.parametrize("norm", NORMS)
def test_a_state_dict_carries_everything(norm: Norm) -> None:
    cell, x = startled(norm(Cell())), inputs()
    other = norm(Cell(0.1))
    other.load_state_dict(cell.state_dict())
    assert torch.equal(other.eval()(x, x), cell.eval()(x, x))


@pytest.mark.parametrize("norm", NORMS)
def test_removal_leaves_plain_weights_of_the_same_map(norm: Norm) -> None:
    cell, x = startled(norm(Cell())), inputs()
    wanted = cell.eval()(x, x)
    cell.train()
    assert remove_norm(cell) is cell
    assert set(cell.state_dict()) == set(Cell().state_dict())
    assert type(cell.linear) is nn.Linear and cell.linear.weight.requires_grad
    assert torch.equal(cell(x, x), wanted)
    assert remove_norm(cell) is cell
    norm(cell)  # and it can be normalised again


def test_removal_of_some() -> None:
    module = remove_norm(weight_norm(Mixed()), ["head"])
    assert "head.weight" in module.state_dict() and "conv.weight" not in module.state_dict()


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("norm", [*NORMS, remove_norm])
def test_unknown_names(norm: Norm) -> None:
    with pytest.raises(ValueError, match=r"'haed' is no .* Did you mean 'head'\? Allowed: 'conv'"):
        norm(Mixed(), ["conv", "haed"])
    with pytest.raises(ValueError, match="'norm' is no linear map"):
        norm(Mixed(), ["norm"])
    with pytest.raises(ValueError, match="a collection of names, got the string 'head'"):
        norm(Mixed(), "head")


@pytest.mark.parametrize("norm", NORMS)
def test_a_mistake_changes_nothing(norm: Norm) -> None:
    module = weight_norm(Mixed(), ["head"])
    with pytest.raises(ValueError, match=r"weight of 'head' has a parametrisation already"):
        norm(module)
    assert not parametrize.is_parametrized(module.conv)
    with pytest.raises(ValueError, match="LayerNorm has no linear map or convolution"):
        norm(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="Mixed has no linear map or convolution"):
        norm(Mixed(), [])


def test_bad_power_iterations() -> None:
    with pytest.raises(ValueError, match="power_iterations must be at least 1, got 0"):
        spectral_norm(Cell(), power_iterations=0)
    with pytest.raises(TypeError, match="whole number"):
        spectral_norm(Cell(), power_iterations=1.5)  # type: ignore[arg-type]
