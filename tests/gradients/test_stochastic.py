"""Random numbers of steps: what is drawn, and the gradient that they have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deqgen.gradients import Forward, StochasticJFB, Unrolled
from tests.gradients.cells import EXACT, Tanh, gradients, inputs, loss


def test_the_gradient_is_that_of_the_recorded_steps() -> None:
    cell, (z0, x) = Tanh(), inputs()
    out = StochasticJFB(no_grad=(3, 3), grad=(2, 2)).differentiate(cell, z0, (x,), EXACT)
    with torch.no_grad():
        z = z0
        for _ in range(3):
            z = cell(z, x)
    tail = Unrolled(2).differentiate(cell, z, (x,), EXACT).z
    assert torch.equal(out.z, tail)
    assert torch.equal(gradients(loss(out.z), x)[0], gradients(loss(tail), x)[0])
    assert out.solution.nfe == 5


def steps(estimator: StochasticJFB, times: int) -> list[int]:
    cell, (z0, x) = Tanh(), inputs()
    return [estimator.differentiate(cell, z0, (x,), Forward()).solution.nfe for _ in range(times)]


def test_draws_are_uniform_and_the_same_for_every_process() -> None:
    drawn = steps(StochasticJFB(no_grad=(0, 2), grad=(1, 2)), 300)
    assert set(drawn) == {1, 2, 3, 4}
    counts = torch.bincount(torch.tensor(drawn))[1:] / 300
    expected = torch.tensor([1 / 6, 1 / 3, 1 / 3, 1 / 6])
    assert (counts - expected).abs().max() < 0.1
    torch.manual_seed(99)  # the global generator, which differs between processes, has no say
    assert steps(StochasticJFB(no_grad=(0, 2), grad=(1, 2)), 20) == drawn[:20]


def test_a_run_resumes_with_the_state_of_its_generator() -> None:
    generator = torch.Generator().manual_seed(4)
    estimator = StochasticJFB(generator=generator)
    steps(estimator, 3)
    state = generator.get_state()
    following = steps(estimator, 5)
    generator.set_state(state)
    assert steps(estimator, 5) == following


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_grad": (-1, 3)}, "a bound of no_grad must be at least 0, got -1"),
        ({"grad": (0, 3)}, "a bound of grad must be at least 1, got 0"),
        ({"grad": (1.5, 2.5)}, "a bound of grad must be a whole number"),
        ({"grad": (4, 3)}, "least <= most"),
        ({"no_grad": (1, 2, 3)}, "no_grad"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        StochasticJFB(**options)
