from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqgen.teachers import Guidance, Karras, Sampler, sample
from tests.teachers.gaussian import noise, problem

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
