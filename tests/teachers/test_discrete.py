from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deqgen.teachers import DiscreteDenoiser, Sampler, Teacher, sample
from deqgen.teachers.discrete import PREDICTIONS
from deqgen.teachers.teacher import weights_sha256

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
STD = 0.5  # of the data in these tests


class Ideal(nn.Module):
    """The best network for data N(0, STD^2), in terms of what it is given: x_t and the time."""

    def __init__(self, prediction_type: str) -> None:
        super().__init__()
        self.prediction_type = prediction_type
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        self.times.append(time)
        abar = ABAR[time.round().long()].reshape(-1, 1, 1, 1)
        variance = abar * STD**2 + 1 - abar  # of x_t
        clean = abar.sqrt() * STD**2 / variance * x
        noise = (1 - abar).sqrt() / variance * x
        answers = {
            "sample": clean,
            "epsilon": noise,
            "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean,
        }
        return answers[self.prediction_type]


class Recorder(nn.Module):
    """Gives zeros of the right shape, and keeps what it was asked."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.factor = factor
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        self.seen.append((x, time, label))
        return torch.cat([x] + [torch.full_like(x, 1e9)] * (self.factor - 1), dim=1)


def noisy(batch: int) -> Tensor:
    return torch.randn(batch, 2, 3, 3, dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", sorted(PREDICTIONS))
def test_the_ideal_network_gives_the_ideal_denoiser(prediction_type: str) -> None:
    denoiser = DiscreteDenoiser(Ideal(prediction_type), ABAR, prediction_type=prediction_type)
    sigma = denoiser.sigmas[torch.tensor([0, 1, 500, 998, 999])]
    x = noisy(5) * sigma.reshape(-1, 1, 1, 1)
    expected = STD**2 / (STD**2 + sigma.reshape(-1, 1, 1, 1) ** 2) * x
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-9, atol=1e-12)


def test_the_levels_are_those_of_the_schedule() -> None:
    denoiser = DiscreteDenoiser(Recorder(), ABAR)
    torch.testing.assert_close(denoiser.sigmas**2, (1 - ABAR) / ABAR, rtol=1e-12, atol=0)
    assert denoiser.sigma_min == pytest.approx(0.01, rel=1e-4)
    assert denoiser.sigma_max == pytest.approx(157.4, rel=1e-3)


def test_times_are_whole_at_the_levels_and_clamped_beyond_them() -> None:
    denoiser = DiscreteDenoiser(Recorder(), ABAR)
    whole = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(denoiser.timestep(denoiser.sigmas), whole, rtol=0, atol=1e-8)
    beyond = denoiser.timestep(torch.tensor([1e-9, 0.009, 158.0, 1e9]))
    assert beyond.tolist() == [0, 0, 999, 999]
    # The sampler's levels are float32; so near the top a time is whole to a few 1e-5 only.
    torch.testing.assert_close(denoiser.timestep(denoiser.sigmas.float()), whole, rtol=0, atol=1e-4)


@given(st.floats(0, 998.999), st.floats(1e-6, 1))
def test_times_rise_with_sigma_and_divide_its_logarithm_evenly(time: float, step: float) -> None:
    denoiser = DiscreteDenoiser(Recorder(), ABAR)
    low = int(time)
    a, b = denoiser.sigmas[low].log(), denoiser.sigmas[low + 1].log()
    sigma = (a + (time - low) * (b - a)).exp()
    found = float(denoiser.timestep(sigma[None])[0])
    assert found == pytest.approx(time, abs=1e-7)
    assert float(denoiser.timestep(sigma[None] * (1 + step))[0]) >= found


def test_the_network_sees_unit_scale_and_the_true_sigma_also_beyond_the_levels() -> None:
    network = Recorder()
    denoiser = DiscreteDenoiser(network, ABAR, prediction_type="sample")
    x, sigma = noisy(3), torch.tensor([1e-3, 3.0, 1e4], dtype=torch.float64)
    denoiser(x, sigma)
    scaled, time, label = network.seen[0]
    torch.testing.assert_close(scaled, x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt())
    assert time.dtype == torch.float32 and label is None
    assert time[0] == 0 and 0 < time[1] < 999 and time[2] == 999
    assert time[1] != time[1].round()


def test_rows_have_their_own_levels() -> None:
    denoiser = DiscreteDenoiser(Ideal("epsilon"), ABAR)
    x, sigma = noisy(4), denoiser.sigmas[[3, 100, 700, 999]]
    together = denoiser(x, sigma)
    alone = torch.cat([denoiser(x[i : i + 1], sigma[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_a_learned_variance_is_dropped() -> None:
    x, sigma = noisy(2), torch.ones(2)
    plain = DiscreteDenoiser(Recorder(), ABAR)(x, sigma)
    learned = DiscreteDenoiser(Recorder(factor=2), ABAR)(x, sigma)
    torch.testing.assert_close(learned, plain, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"must give 2, or 4 with a learned variance.*gave 6"):
        DiscreteDenoiser(Recorder(factor=3), ABAR)(x, sigma)


def test_no_label_is_the_no_class_label_where_there_is_one() -> None:
    network = Recorder()
    DiscreteDenoiser(network, ABAR, num_classes=7)(noisy(2), torch.ones(2))
    DiscreteDenoiser(network, ABAR, num_classes=7)(noisy(2), torch.ones(2), torch.tensor([1, 7]))
    DiscreteDenoiser(network, ABAR)(noisy(2), torch.ones(2))
    first, second, third = (label for _, _, label in network.seen)
    assert first is not None and first.tolist() == [7, 7] and first.dtype == torch.int64
    assert second is not None and second.tolist() == [1, 7]
    assert third is None


@pytest.mark.parametrize("last", [0.0, 2.0**-24], ids=["zero", "placeholder"])
def test_a_last_level_without_signal_is_left_out(last: float) -> None:
    # Zero terminal SNR: abar falls to nothing; some schedulers put a placeholder at the end.
    root = ABAR.sqrt()
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    rescaled[-1] = last
    denoiser = DiscreteDenoiser(Ideal("epsilon"), rescaled)
    assert len(denoiser.sigmas) == 999
    assert denoiser.sigma_max == pytest.approx(1.5e4, rel=0.2)
    assert denoiser.timestep(torch.tensor([1e9])).item() == 998


@pytest.mark.parametrize(
    ("abar", "sentence"),
    [
        ([0.9, 0.5], "at least 3 levels"),
        ([0.9, 0.95, 0.5, 0.1], "decrease strictly"),
        ([1.0, 0.9, 0.5, 0.1], "below 1"),
        ([0.9, 0.5, 0.0, 0.0], "above 0"),
        ([0.9, math.nan, 0.5, 0.1], "decrease strictly"),
        ([0.9, 0.5, -0.1, -0.2], "above 0"),
    ],
    ids=["two", "rising", "no noise", "two zeros", "nan", "negative"],
)
def test_what_is_no_schedule_is_refused(abar: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DiscreteDenoiser(Recorder(), torch.tensor(abar))


def test_an_unknown_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'v_prediction'"):
        DiscreteDenoiser(Recorder(), ABAR, prediction_type="v-prediction")


def test_the_schedule_is_no_weight() -> None:
    network = nn.Conv2d(2, 2, 1)
    a, b = DiscreteDenoiser(network, ABAR), DiscreteDenoiser(network, ABAR.float())
    assert weights_sha256(a) == weights_sha256(b)


def test_it_can_be_a_teacher() -> None:
    # For N(0, STD^2) the ODE's solution is x * STD / sigma_max, up to the first sigma's own share.
    class Exact(Ideal):
        def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
            low = time.floor().long().clamp(max=998)
            levels = ((1 - ABAR) / ABAR).sqrt().log()
            sigma = levels[low].lerp(levels[low + 1], time.double() - low).exp()
            square = sigma.reshape(-1, 1, 1, 1) ** 2
            return x * (1 + square).sqrt() * STD**2 / (STD**2 + square)

    denoiser = DiscreteDenoiser(Exact("sample"), ABAR, prediction_type="sample")
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    image = sample(denoiser, noise, sampler=Sampler(steps=64))
    torch.testing.assert_close(image, STD * noise, rtol=5e-3, atol=1e-4)
    teacher = Teacher(denoiser, image_shape=(1, 4, 4), sampler=Sampler(steps=64))
    torch.testing.assert_close(teacher.sample(noise).double(), image, rtol=1e-4, atol=1e-5)
