from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.teachers import CountingDenoiser, Euler, Guidance, Heun, Karras, Sampler, sample
from tests.teachers.gaussian import Gaussian, noise, problem

# A last level this small makes the unavoidable Euler step to zero exact to 1e-9.
FINE = Karras(sigma_min=1e-5, sigma_max=80.0, rho=7.0)
LABEL = torch.tensor([0, 1, 1])


def error(method: str, steps: int) -> float:
    denoiser, start = problem(), noise(3)
    images = sample(
        denoiser, start, LABEL, sampler=Sampler(method=method, steps=steps, schedule=FINE)
    )
    exact = denoiser.solution(start, 80.0, denoiser.centre(start, LABEL))
    return (images - exact).abs().max().item()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence_on_gaussian_data(method: str, order: int) -> None:
    errors = [error(method, steps) for steps in (64, 128, 256)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)
    assert errors[-1] < (3e-2 if order == 1 else 1e-3)


def reference_heun(
    denoiser: Gaussian, start: np.ndarray, label: np.ndarray, steps: int
) -> np.ndarray:
    """EDM's Algorithm 1 for sigma(t) = t, s(t) = 1, in numpy and without shared code."""
    mean = denoiser.mean.numpy()[label].reshape(-1, 1, 1, 1)
    variance = denoiser.std.numpy().reshape(1, -1, 1, 1) ** 2

    def slope(x: np.ndarray, t: float) -> np.ndarray:
        clean = (variance * x + t**2 * mean) / (variance + t**2)
        return (x - clean) / t

    times = [
        (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        for i in range(steps)
    ] + [0.0]
    x = start * times[0]
    for t, t_next in itertools.pairwise(times):
        d = slope(x, t)
        x_next = x + (t_next - t) * d
        if t_next != 0:
            x_next = x + (t_next - t) * (d + slope(x_next, t_next)) / 2
        x = x_next
    return x


@pytest.mark.parametrize("steps", [2, 3, 18, 40])
def test_heun_agrees_with_an_independent_reference(steps: int) -> None:
    denoiser, start = problem(), noise(3)
    images = sample(denoiser, start, LABEL, sampler=Sampler(steps=steps))
    expected = reference_heun(denoiser, start.numpy(), LABEL.numpy(), steps)
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_one_euler_step_is_the_denoiser_itself() -> None:
    denoiser, start = problem(), noise(3)
    images = sample(denoiser, start, LABEL, sampler=Sampler(method="euler", steps=1))
    top = Karras().sigmas(1)[0]
    expected = denoiser(start * top, top.expand(3), LABEL)
    torch.testing.assert_close(images, expected, rtol=1e-10, atol=1e-12)


def test_the_state_is_float64_and_the_denoiser_is_called_in_the_dtype_of_the_noise() -> None:
    seen: list[tuple[torch.dtype, torch.dtype, torch.Size]] = []
    denoiser = problem()

    def watched(x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        seen.append((x.dtype, sigma.dtype, sigma.shape))
        return denoiser(x, sigma, label)

    images = sample(watched, noise(3).float(), LABEL, sampler=Sampler(steps=4))
    assert images.dtype == torch.float64
    assert set(seen) == {(torch.float32, torch.float32, torch.Size([3]))}
    exact = sample(denoiser, noise(3).float().double(), LABEL, sampler=Sampler(steps=4))
    torch.testing.assert_close(images, exact, rtol=1e-5, atol=1e-5)


@given(
    method=st.sampled_from(["euler", "heun"]),
    steps=st.integers(1, 12),
    scale=st.sampled_from([1.0, 1.5, 4.0]),
    interval=st.one_of(
        st.none(),
        st.tuples(st.floats(0, 1), st.floats(1.1, 100)),
        st.tuples(st.sampled_from(Karras().sigmas(7).tolist()), st.just(90.0)),
    ),
)
def test_counted_evaluations_equal_the_predicted(
    method: str, steps: int, scale: float, interval: tuple[float, float] | None
) -> None:
    counter = CountingDenoiser(problem())
    sampler, guidance = (
        Sampler(method=method, steps=steps),
        Guidance(scale=scale, interval=interval),
    )
    sample(counter, noise(3), LABEL, sampler=sampler, guidance=guidance, null_label=2)
    assert counter.rows == 3 * sampler.nfe(guidance)
    assert counter.calls == len(sampler.visits())


def test_the_published_cost_is_35() -> None:
    assert Sampler().nfe() == 35
    assert Sampler(method="euler").nfe() == 18
    assert Sampler().nfe(Guidance(scale=2.0)) == 70


def test_a_row_does_not_depend_on_its_batch() -> None:
    denoiser, start = problem(), noise(3)
    together = sample(denoiser, start, LABEL)
    alone = torch.cat([sample(denoiser, start[i : i + 1], LABEL[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_a_sampler_survives_its_description() -> None:
    sampler = Sampler(method="euler", steps=7, schedule=Karras(rho=3.0))
    assert Sampler.from_dict(sampler.describe()) == sampler
    assert Sampler.from_dict({}) == Sampler()
    assert Sampler(method=Heun(), schedule="karras").describe() == Sampler().describe()
    assert Sampler(method=Euler()).nfe() == 18


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'heun'"):
        Sampler(method="huen")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Sampler(steps=0)
    with pytest.raises(TypeError, match="Did you mean 'steps'"):
        Sampler.from_dict({"step": 3})
    with pytest.raises(ValueError, match=r"floating point \(B, C, H, W\)"):
        sample(problem(), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="needs labels"):
        sample(problem(), noise(1), guidance=Guidance(scale=2.0))
    with pytest.raises(TypeError, match="num_classes"):
        sample(lambda x, s, y: x, noise(1), LABEL[:1], guidance=Guidance(scale=2.0))
