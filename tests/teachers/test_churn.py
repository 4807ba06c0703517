from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.teachers import Churn, Euler, Karras, Sampler, sample
from tests.teachers.gaussian import noise, problem

LABEL = torch.tensor([0, 1, 1])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@given(amount=st.floats(0.01, 1000), steps=st.integers(1, 300), sigma=st.floats(1e-3, 100))
def test_the_level_rises_as_in_the_paper(amount: float, steps: int, sigma: float) -> None:
    raised = Churn(amount=amount, low=0.05, high=50).raised(sigma, steps)
    gamma = min(amount / steps, math.sqrt(2) - 1) if 0.05 <= sigma <= 50 else 0
    assert raised == pytest.approx((1 + gamma) * sigma, rel=1e-14)


def test_added_noise_makes_up_the_variance() -> None:
    churn = Churn(amount=1, noise=1.5)
    x = torch.zeros(2, 1, 200, 200, dtype=torch.float64)
    added = churn.add(x, 3.0, 5.0, generators(0, 1))
    assert added.std().item() == pytest.approx(1.5 * 4, rel=0.02)
    assert (added[0] - added[1]).abs().max() > 1


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_it_is_algorithm_2(method: str) -> None:
    denoiser, start, steps = problem(), noise(3), 7
    churn = Churn(amount=3, low=0.1, high=40, noise=1.007)
    sampler = Sampler(method=method, steps=steps, churn=churn)
    images = sample(denoiser, start, LABEL, sampler=sampler, generators=generators(4, 5, 6))

    drawn, times = generators(4, 5, 6), Karras().sigmas(steps).tolist()
    x = start * times[0]
    for i in range(steps):
        gamma = min(3 / steps, math.sqrt(2) - 1) if 0.1 <= times[i] <= 40 else 0
        eps = torch.stack([torch.randn(3, 2, 2, generator=g, dtype=torch.float64) for g in drawn])
        t_hat = times[i] + gamma * times[i]
        x_hat = x + math.sqrt(t_hat**2 - times[i] ** 2) * 1.007 * eps
        d = (x_hat - denoiser(x_hat, torch.full((3,), t_hat, dtype=x.dtype), LABEL)) / t_hat
        x = x_hat + (times[i + 1] - t_hat) * d
        if method == "heun" and times[i + 1] > 0:
            level = torch.full((3,), times[i + 1], dtype=x.dtype)
            d_next = (x - denoiser(x, level, LABEL)) / times[i + 1]
            x = x_hat + (times[i + 1] - t_hat) * (d + d_next) / 2
    torch.testing.assert_close(images, x, rtol=1e-12, atol=1e-12)


def test_a_sample_depends_on_its_own_generator_alone() -> None:
    denoiser, start = problem(), noise(3)
    sampler = Sampler(steps=6, churn=Churn(amount=2))
    together = sample(denoiser, start, LABEL, sampler=sampler, generators=generators(1, 2, 3))
    for row, seed in enumerate((1, 2, 3)):
        one = slice(row, row + 1)
        alone = sample(
            denoiser, start[one], LABEL[one], sampler=sampler, generators=generators(seed)
        )
        torch.testing.assert_close(alone, together[one], rtol=0, atol=0)
    other = sample(denoiser, start, LABEL, sampler=sampler, generators=generators(1, 9, 3))
    assert torch.equal(other[::2], together[::2]) and not torch.equal(other[1], together[1])


def test_where_no_noise_is_added_it_is_drawn_all_the_same() -> None:
    denoiser, start, nowhere = problem(), noise(3), Churn(amount=2, low=1e3, high=1e4)
    drawn, free = generators(1, 2, 3), generators(1, 2, 3)
    images = sample(
        denoiser, start, LABEL, sampler=Sampler(steps=6, churn=nowhere), generators=drawn
    )
    torch.testing.assert_close(images, sample(denoiser, start, LABEL, sampler=Sampler(steps=6)))
    for _ in range(6):
        torch.randn(3, 2, 2, generator=free[0], dtype=torch.float64)
    assert torch.equal(drawn[0].get_state(), free[0].get_state())


def test_the_law_of_the_samples_stays_that_of_the_data() -> None:
    # Fresh noise and the extra denoising cancel in law, whatever noise sampling began with.
    denoiser = problem()
    start, label = torch.zeros(1, 3, 60, 60, dtype=torch.float64), torch.tensor([0])
    sampler = Sampler(steps=100, churn=Churn(amount=1000))
    images = sample(denoiser, start, label, sampler=sampler, generators=generators(0))
    assert images.mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(images.std((0, 2, 3)), denoiser.std, rtol=0.05, atol=0)
    plain = sample(denoiser, start, label, sampler=Sampler(steps=100))
    assert plain.std((0, 2, 3)).max() < 1e-9


def test_a_multi_step_method_forgets_where_noise_was_added() -> None:
    denoiser, start, churn = problem(), noise(3), Churn(amount=2)
    images = [
        sample(
            denoiser,
            start,
            LABEL,
            sampler=Sampler(method=method, steps=6, churn=churn),
            generators=generators(1, 2, 3),
        )
        for method in ("dpmpp-2m", "euler")
    ]
    torch.testing.assert_close(*images, rtol=1e-12, atol=1e-12)

    remembered: list[bool] = []

    class Remembering(Euler):
        def step(
            self, denoise: object, x: Tensor, sigma: float, sigma_next: float, memory: object = None
        ) -> tuple[Tensor, object]:
            remembered.append(memory is not None)
            return x, "something"

    top = Churn(amount=2, low=1.0)
    sampler = Sampler(method=Remembering(), steps=6, churn=top)
    sample(denoiser, start, LABEL, sampler=sampler, generators=generators(1, 2, 3))
    assert remembered == [False, *(sigma < 1 for sigma in sampler.sigmas()[1:-1])]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": 0.0}, "churn=None is deterministic"),
        ({"amount": math.inf}, "positive and finite"),
        ({"amount": 1.0, "low": 2.0, "high": 1.0}, "0 <= low <= high"),
        ({"amount": 1.0, "noise": math.nan}, "noise of churn"),
    ],
)
def test_impossible_churn_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Churn(**options)
