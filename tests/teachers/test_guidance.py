from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqgen.teachers import Churn, Guidance, Karras, Sampler, sample, sample_parallel
from tests.teachers.gaussian import Gaussian, noise, problem

LABEL = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 5.0])
def test_guided_gaussians_sample_around_the_extrapolated_mean(scale: float) -> None:
    # Both estimates are linear with one slope, so D_w is the denoiser of a Gaussian with mean
    # m_uncond + w (m_cond - m_uncond): the guided ODE has an exact solution too.
    denoiser, start = problem(), noise(3)
    sampler = Sampler(steps=400, schedule=Karras(sigma_min=1e-4))
    images = sample(denoiser, start, LABEL, sampler=sampler, guidance=Guidance(scale=scale))
    uncond = denoiser.centre(start, None)
    centre = uncond + scale * (denoiser.centre(start, LABEL) - uncond)
    exact = denoiser.solution(start, 80.0, centre)
    torch.testing.assert_close(images, exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("method", ["euler", "heun", "dpmpp-2m"])
@pytest.mark.parametrize("churn", [None, Churn(amount=5)], ids=["plain", "churned"])
def test_every_sampler_guides(method: str, churn: Churn | None) -> None:
    # By the same argument, step for step what it does with the Gaussian of the extrapolated mean.
    denoiser, start, scale = problem(), noise(3), 3.0
    uncond = denoiser.mean[-1]
    extrapolated = Gaussian(uncond + scale * (denoiser.mean - uncond), denoiser.std)
    sampler = Sampler(method=method, steps=9, churn=churn)

    def images(of: Gaussian, guidance: Guidance | None) -> Tensor:
        drawn = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return sample(of, start, LABEL, sampler=sampler, guidance=guidance, generators=drawn)

    expected = images(extrapolated, None)
    guided = images(denoiser, Guidance(scale=scale))
    torch.testing.assert_close(guided, expected, rtol=1e-11, atol=1e-12)
    if churn is None:
        options = {"sampler": sampler, "guidance": Guidance(scale=scale), "tol": 1e-13}
        parallel, _ = sample_parallel(denoiser, start, LABEL, **options)
        torch.testing.assert_close(parallel, expected, rtol=0, atol=1e-11)


def test_rows_choose_what_is_guided() -> None:
    denoiser, x, sigma = problem(), noise(3), torch.tensor([1.0, 2.0, 3.0])
    guidance, rows = Guidance(scale=3.0), torch.tensor([2, 0])
    some = guidance.denoise(denoiser, x, sigma, LABEL, 2, rows)
    every = guidance.denoise(denoiser, x, sigma, LABEL, 2)
    torch.testing.assert_close(some[rows], every[rows])
    torch.testing.assert_close(some[1], denoiser(x, sigma, LABEL)[1])


def test_both_halves_go_in_one_batch_and_outside_the_interval_only_the_conditional_runs() -> None:
    calls: list[tuple[float, int, list[int]]] = []
    denoiser = problem()

    def watched(x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        assert label is not None
        calls.append((sigma[0].item(), len(x), label.tolist()))
        return denoiser(x, sigma, label)

    guidance = Guidance(scale=3.0, interval=(0.3, 5.0))
    sample(watched, noise(3), LABEL, guidance=guidance, null_label=2)
    inside = [call for call in calls if 0.3 < call[0] <= 5.0]
    outside = [call for call in calls if not 0.3 < call[0] <= 5.0]
    assert inside and outside
    assert all(rows == 6 and labels == [0, 1, 1, 2, 2, 2] for _, rows, labels in inside)
    assert all(rows == 3 and labels == [0, 1, 1] for _, rows, labels in outside)


def test_the_interval_is_open_below_and_closed_above() -> None:
    guidance = Guidance(scale=2.0, interval=(0.5, 4.0))
    assert [guidance.active(sigma) for sigma in (0.5, 0.6, 4.0, 4.1)] == [False, True, True, False]
    assert not Guidance(scale=1.0).active(1.0)
    assert Guidance(scale=1.1).active(1e9)


def test_an_interval_over_everything_equals_none() -> None:
    denoiser, start = problem(), noise(3)
    everywhere = sample(denoiser, start, LABEL, guidance=Guidance(scale=2.0))
    interval = Guidance(scale=2.0, interval=(0.0, 1000.0))
    torch.testing.assert_close(sample(denoiser, start, LABEL, guidance=interval), everywhere)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"scale": 2.0, "interval": (3.0, 3.0)}, "0 <= low < high"),
        ({"scale": 2.0, "interval": (-1.0, 3.0)}, "0 <= low < high"),
    ],
)
def test_impossible_guidance_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Guidance(**options)  # type: ignore[arg-type]
