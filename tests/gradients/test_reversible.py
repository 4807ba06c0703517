"""The reversible scheme against autograd through the same recurrences."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen.gradients import Forward, Reversible, Unrolled
from deqgen.gradients.recompute import checkpointed
from tests.gradients.cells import EXACT, Tanh, gradients, inputs, loss, matrix


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 8),
    beta=st.floats(0.1, 0.6),
    norm=st.floats(0.1, 1.5),
)
def test_it_is_autograd_through_its_scheme(seed: int, steps: int, beta: float, norm: float) -> None:
    cell = Tanh(4, norm, seed)
    z0, x = inputs(3, 4, seed + 1)
    z0 = z0.requires_grad_()
    mine = Reversible(steps, beta).differentiate(cell, z0, (x,), EXACT)
    y = z = z0
    for _ in range(steps):
        y = (1 - beta) * y + beta * cell(z, x)
        z = (1 - beta) * z + beta * cell(y, x)
    assert torch.equal(mine.z, z)
    assert mine.solution.nfe == 2 * steps
    wanted = (x, z0, cell.weight, cell.bias)
    for a, b in zip(gradients(loss(mine.z), *wanted), gradients(loss(z), *wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_it_tends_to_the_equilibrium_and_its_gradient() -> None:
    cell, (z0, x) = Tanh(norm=0.3), inputs()
    z = Reversible(26, 0.5).differentiate(cell, z0, (x,), EXACT).z
    star = Unrolled(200).differentiate(cell, z0, (x,), EXACT).z
    torch.testing.assert_close(z, star, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(loss(z), x), gradients(loss(star), x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_double_backward_and_a_second_backward() -> None:
    cell, (z0, x) = Tanh(3), inputs(2, 3)
    run = lambda x: Reversible(3, 0.4).differentiate(cell, z0, (x,), EXACT).z  # noqa: E731
    assert torch.autograd.gradgradcheck(run, (x,))
    value = loss(run(x))
    first = torch.autograd.grad(value, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(value, x)[0], first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_and_half_precision_are_taken_back_exactly(dtype: torch.dtype) -> None:
    """In double precision no rounding error of a few steps back reaches what f sees."""
    cell = Tanh().to(dtype)
    z0, x = (t.detach().to(dtype) for t in inputs())
    x.requires_grad_()
    mine = Reversible(12, 0.5).differentiate(cell, z0, (x,), EXACT).z
    y = z = z0.double()
    for _ in range(12):
        y = 0.5 * y + 0.5 * cell(z.to(dtype), x).double()
        z = 0.5 * z + 0.5 * cell(y.to(dtype), x).double()
    assert mine.dtype == dtype and torch.equal(mine, z.to(dtype))
    wanted = (x, cell.weight)
    plain = gradients(loss(z.to(dtype)), *wanted)
    for a, b in zip(gradients(loss(mine), *wanted), plain, strict=True):
        assert torch.equal(a, b)


def test_a_state_of_several_tensors_some_of_which_f_needs_nothing_of() -> None:
    """An evaluation that saves nothing is taken back too."""
    a = matrix(3, 0.4, 5).requires_grad_()

    def cell(z: dict[str, Any], x: Tensor) -> dict[str, Any]:
        return {"q": z["p"] + x, "p": z["q"] @ a.T}

    x = inputs(2, 3)[1]
    z0 = {"p": torch.zeros_like(x), "q": torch.ones_like(x).detach()}
    z = Reversible(5, 0.3).differentiate(cell, z0, (x,), EXACT).z
    assert list(z) == ["p", "q"]
    wp, wq = ({"p": z0["p"], "q": z0["q"]} for _ in range(2))
    for _ in range(5):
        new = cell(wq, x)
        wp = {k: 0.7 * wp[k] + 0.3 * new[k] for k in wp}
        new = cell(wp, x)
        wq = {k: 0.7 * wq[k] + 0.3 * new[k] for k in wq}
    mine = gradients(loss(z["p"]) + loss(z["q"]), a, x)
    for m, s in zip(mine, gradients(loss(wq["p"]) + loss(wq["q"]), a, x), strict=True):
        torch.testing.assert_close(m, s, rtol=1e-10, atol=1e-12)


def test_without_gradients_it_is_the_same_scheme() -> None:
    cell, (z0, x) = Tanh(), inputs()
    recorded = Reversible(4).differentiate(cell, z0, (x,), EXACT).z
    with torch.no_grad():
        plain = Reversible(4).differentiate(cell, z0, (x,), EXACT).z
    assert torch.equal(plain, recorded) and not plain.requires_grad


def test_half_the_budget_of_the_call() -> None:
    cell, (z0, x) = Tanh(), inputs()
    solution = Reversible().differentiate(cell, z0, (x,), Forward(max_steps=9)).solution
    assert solution.steps.tolist() == [4] * 3 and solution.nfe == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps must be at least 1"), ({"beta": 1.0}, "forgets"), ({"beta": 0.0}, "0")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reversible(**options)


def test_checkpoint_is_told_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a tensor it would restore the random numbers of the CPU alone."""
    module: Any = importlib.import_module("deqgen.gradients.reversible")
    told: list[Any] = []

    def watched(function: Any, *args: Any, **options: Any) -> Any:
        told.extend(args)
        return checkpointed(function, *args, **options)

    monkeypatch.setattr(module, "checkpointed", watched)
    z0, x = inputs()
    Reversible(steps=2).differentiate(Tanh(), z0, (x,), EXACT)
    assert [(t.device, t.numel()) for t in told] == [(z0.device, 0)] * 4
