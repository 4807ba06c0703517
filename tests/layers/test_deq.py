"""The DEQ layer: cell, solver and estimator in any combination."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqgen.gradients import GradientError, Implicit, Phantom, Unrolled
from deqgen.layers import DEQ, fixed_weights, normal_start, spectral_norm
from deqgen_solvers import Anderson, Picard, Tolerance

TIGHT = Tolerance(atol=0.0, rtol=1e-12)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(z)) + x


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", Anderson(memory=3)])
@pytest.mark.parametrize("gradient", ["implicit", "jfb", Phantom(2, 0.5), Unrolled(40)])
def test_any_solver_with_any_estimator(solver: Any, gradient: Any, x: Tensor) -> None:
    layer = DEQ(Cell(), solver=solver, gradient=gradient, tol=TIGHT, max_steps=200)
    z = layer(x).z
    torch.testing.assert_close(z, layer.cell(z, x), rtol=1e-8, atol=1e-10)
    z.sum().backward()
    assert layer.cell.linear.weight.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x).z, z.detach(), rtol=1e-8, atol=1e-10)


def test_a_plain_function_and_its_closure(x: Tensor) -> None:
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    z = DEQ(lambda z, x: scale * z + x, tol=TIGHT)(x).z
    z.sum().backward()
    torch.testing.assert_close(z, 2 * x)
    torch.testing.assert_close(scale.grad, (2 * z).sum().detach())  # dz/ds = z / (1 - s)


def test_a_module_cell_belongs_to_the_layer() -> None:
    layer = DEQ(Cell())
    assert set(layer.state_dict()) == {"cell.linear.weight", "cell.linear.bias"}
    twin = copy.deepcopy(layer)
    assert twin.cell is not layer.cell
    assert "Implicit" in repr(layer)
    assert "Anderson" in repr(layer)


def test_evaluation_returns_the_image_of_the_best_iterate(x: Tensor) -> None:
    layer = DEQ(
        Cell(), solver="picard", tol=Tolerance(atol=0, rtol=0), max_steps=9, eval_max_steps=5
    )
    with torch.no_grad():
        out = layer.eval()(x)
    assert out.solution.nfe == 6
    assert torch.equal(out.z, out.solution.fz)
    assert torch.equal(out.z, layer.cell(out.solution.z, x))
    with torch.no_grad():
        assert layer(x, max_steps=2).solution.nfe == 3
        assert layer.train()(x, max_steps=0).solution.nfe == 1


@pytest.mark.parametrize("gradient", [Unrolled(), Phantom(3, 0.5)])
@pytest.mark.parametrize("wanted", ["parameter", "argument", "start"])
def test_evaluation_refuses_a_gradient_it_does_not_have(
    gradient: Any, wanted: str, x: Tensor
) -> None:
    layer = DEQ(Cell(), gradient=gradient, tol=TIGHT).eval()
    start = torch.zeros_like(x).requires_grad_()
    x.requires_grad_()
    z = layer(x, z0=start).z
    target = {"parameter": layer.cell.linear.bias, "argument": x, "start": start}[wanted]
    with pytest.raises(GradientError, match=r"Call \.train\(\) first"):
        torch.autograd.grad((z * x).sum(), target)


def test_evaluation_differentiates_where_the_estimator_can(x: Tensor) -> None:
    layer = DEQ(Cell(), gradient=Implicit(tol=TIGHT), tol=TIGHT)
    weight = layer.cell.linear.weight
    (train,) = torch.autograd.grad(layer(x).z.sin().sum(), weight)
    (evaluated,) = torch.autograd.grad(layer.eval()(x).z.sin().sum(), weight)
    torch.testing.assert_close(train, evaluated)


def test_a_warm_start_is_used(x: Tensor) -> None:
    layer = DEQ(Cell(), tol=TIGHT, max_steps=100)
    with torch.no_grad():
        solved = layer(x)
        again = layer(x, z0=solved.z)
    assert solved.solution.steps.max() > 3
    assert again.solution.steps.max() <= 1


def test_starts() -> None:
    x = torch.ones(3, 4)
    seen: list[Tensor] = []

    def cell(z: Tensor, x: Tensor) -> Tensor:
        seen.append(z.clone())
        return 0.1 * z + x

    def start(**options: Any) -> Tensor:
        seen.clear()
        call = {"generator": options.pop("generator")} if "generator" in options else {}
        DEQ(cell, max_steps=0, tol=None, gradient="unrolled", **options).eval()(x, **call)
        return seen[0]

    assert torch.equal(start(), torch.zeros(3, 4))
    assert torch.equal(start(initial=lambda x: 2 * x), 2 * x)
    recorded = start(initial="normal")
    assert torch.equal(recorded, start(initial="normal"))
    assert torch.equal(recorded[0], recorded[2])
    each = [torch.Generator().manual_seed(s) for s in (5, 6, 5)]
    drawn = start(initial="normal", generator=each)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_under_autocast_the_state_keeps_its_dtype() -> None:
    linear = nn.Linear(4, 4)
    seen = set()

    def cell(z: Tensor, x: Tensor) -> Tensor:
        y = linear(z)
        seen.add((z.dtype, y.dtype))
        return torch.tanh(0.3 * y)

    layer = DEQ(cell, gradient=Unrolled(3))
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(torch.ones(2, 4)).z
    assert seen == {(torch.float32, torch.bfloat16)}
    assert z.dtype == torch.float32
    z.sum().backward()
    assert linear.weight.grad.abs().sum() > 0


def test_tuple_states() -> None:
    def cell(z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        return (0.5 * z[0] + x, 0.5 * z[1] + z[0].mean(1, keepdim=True))

    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    layer = DEQ(
        cell, initial=lambda x: (torch.zeros_like(x), torch.zeros_like(x[:, :1])), tol=TIGHT
    )
    wide, narrow = layer(x).z
    torch.testing.assert_close(wide, 2 * x)
    torch.testing.assert_close(narrow, 4 * x.mean(1, keepdim=True))
    torch.testing.assert_close(torch.autograd.grad(narrow.sum(), x)[0], torch.ones_like(x))


@pytest.mark.parametrize("gradient", ["implicit", "jfb", Unrolled(2)])
@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (lambda z, x: z[:, :2], r"returned shape \(3, 2\) for a state of shape \(3, 4\)"),
        (lambda z, x: (z, z), "expected a tensor"),
        (lambda z, x: None, "expected a tensor"),
    ],
)
def test_a_cell_that_changes_its_state(cell: Any, says: str, gradient: Any, x: Tensor) -> None:
    with pytest.raises(ValueError, match=says):
        DEQ(cell, gradient=gradient)(x)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (lambda z, x: (z[0],), "a tuple of 2 entries, got a tuple of 1"),
        (lambda z, x: [z[0], z[1]], "a tuple of 2 entries, got a list of 2"),
    ],
)
def test_a_cell_that_changes_its_structure(cell: Any, says: str, x: Tensor) -> None:
    with pytest.raises(ValueError, match=says):
        DEQ(cell, gradient=Unrolled(2), initial=lambda x: (x, x))(x)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"solver": "andersen"}, ValueError, "anderson"),
        ({"gradient": "implict"}, ValueError, "Did you mean 'implicit'"),
        ({"initial": "ones"}, ValueError, "'zeros', 'normal'"),
        ({"max_steps": -1}, ValueError, "0 or more"),
        ({"max_steps": 2.5}, TypeError, "integer"),
        ({"eval_max_steps": -1}, ValueError, "eval_max_steps"),
        ({"cell": 3}, TypeError, "cell must be"),
    ],
)
def test_mistakes_at_construction(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    cell = options.pop("cell", lambda z, x: z)
    with pytest.raises(error, match=says):
        DEQ(cell, **options)


def test_mistakes_at_the_call() -> None:
    layer = DEQ(lambda z, *args: 0.5 * z, gradient=Unrolled())
    with pytest.raises(ValueError, match="Pass z0="):
        layer()
    with pytest.raises(ValueError, match="Pass z0="):
        layer(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1"):
        layer(torch.ones(2, 2), max_steps=0)


def test_attributes_may_be_changed(x: Tensor) -> None:
    layer = DEQ(Cell(), solver="picard", tol=TIGHT, max_steps=100)
    slow = layer(x).solution.steps.max()
    layer.solver = Anderson()
    assert layer(x).solution.steps.max() < slow
    layer.solver, layer.gradient = Picard(), Unrolled(2)
    assert len(layer(x).states) == 2


def test_normal_start_draws_one_generator_a_sample() -> None:
    one = normal_start(3, (2, 5), torch.Generator().manual_seed(3))
    assert one.shape == (3, 2, 5)
    assert torch.equal(one[:2], normal_start(2, (2, 5), torch.Generator().manual_seed(3)))
    assert torch.equal(one[0], normal_start(1, (2, 5), [torch.Generator().manual_seed(3)])[0])
    assert normal_start(0, (2, 5), []).shape == (0, 2, 5)
    before = torch.get_rng_state()
    assert normal_start(2, (3,), dtype=torch.float64).dtype == torch.float64
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="2 generators for 3 samples"):
        normal_start(3, (2,), [torch.Generator(), torch.Generator()])
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        normal_start(2, (2,), [1, 2])  # type: ignore[list-item]


@pytest.mark.parametrize("training", [True, False])
def test_compact_changes_the_cost_alone(training: bool, x: Tensor) -> None:
    rows = 0

    class Counting(Cell):
        def forward(self, z: Tensor, x: Tensor, gain: Tensor) -> Tensor:
            nonlocal rows
            rows += z.shape[0]
            return torch.tanh(gain * self.linear(z)) + x

    torch.manual_seed(0)
    layer = DEQ(Counting(), tol=TIGHT, max_steps=100).train(training)
    gain = torch.tensor([[0.01], [0.02], [1.5]], dtype=torch.float64)
    found = []
    for layer.compact in (False, True):
        rows = 0
        found.append((layer(x, gain).z, rows))
    (whole, all_rows), (parted, fewer) = found
    assert fewer < 0.8 * all_rows
    torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="one row a sample"):
        layer(x, gain[:2])


def test_options_of_one_call(x: Tensor) -> None:
    gain = torch.tensor([[0.01], [0.02], [0.9]], dtype=torch.float64)
    loose = Tolerance(atol=0.0, rtol=1e-3)
    layer = DEQ(lambda z, x, gain: gain * torch.tanh(z) + x, tol=TIGHT, max_steps=200).eval()
    usual = layer(x, gain)
    assert usual.solution.trace is None
    traced = layer(x, gain, solver="picard", tol=loose, compact=True, trace=True)
    steps = traced.solution.steps
    assert traced.solution.trace.residual.shape == (int(steps.max()) + 1, len(x))
    assert traced.solution.trace.rows[-1] == 1 < len(x) and int(steps.min()) < int(steps.max())
    assert bool(traced.solution.converged.all()) and not torch.equal(traced.z, usual.z)
    budget = layer(x, gain, solver="picard", tol=None, max_steps=3)
    assert budget.solution.nfe == 3 and budget.solution.residual is None
    assert torch.equal(layer(x, gain).z, usual.z) and layer.tol == TIGHT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "pickard"}, "picard"),
        ({"tol": 1e-3}, "tol must be a Tolerance or None"),
        ({"tol": None, "trace": True}, "need a tolerance"),
    ],
)
def test_mistakes_in_options_of_one_call(options: dict[str, Any], message: str, x: Tensor) -> None:
    layer = DEQ(lambda z, x: 0.5 * torch.tanh(z) + x)
    with pytest.raises((ValueError, TypeError), match=message):
        layer(x, **options)


@pytest.mark.parametrize("method", [False, True])
def test_a_layer_refuses_a_spectral_norm_that_moves(method: bool, x: Tensor) -> None:
    cell = spectral_norm(Cell())
    layer = DEQ(cell.forward if method else cell, tol=TIGHT)
    with pytest.raises(ValueError, match=r"'linear' of Cell has a spectral norm.*fixed_weights"):
        layer(x)
    with fixed_weights(cell):
        layer(x)
    cell.eval()
    layer.eval()(x)
