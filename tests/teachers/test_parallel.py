from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen.teachers import (
    Churn,
    CountingDenoiser,
    Euler,
    Guidance,
    Sampler,
    parallel,
    sample,
    sample_parallel,
)
from deqgen.teachers.methods import Denoise, make_method
from tests.teachers.gaussian import noise, problem

LABEL = torch.tensor([0, 1, 1])
METHODS = ["euler", "heun", "dpmpp-2m"]


class TwoPoints:
    """Clean images whose pixels are 0.6 or -0.6, shifted by the class: not linear at all."""

    num_classes = 2

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        shift = 0 if label is None else (label.reshape(-1, 1, 1, 1) - 1) / 10
        return 0.6 * torch.tanh(0.6 * (x - shift) / sigma.reshape(-1, 1, 1, 1) ** 2) + shift


def serial(sampler: Sampler, **options: Any) -> Tensor:
    return sample(TwoPoints(), noise(3), LABEL, sampler=sampler, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_a_sweep_makes_one_more_point_right(method: str, steps: int) -> None:
    # The map is triangular: n sweeps from any guess make the first n points exact, N all of them.
    sampler, start = Sampler(method=method, steps=steps), noise(3)
    sigmas = sampler.sigmas()
    window = parallel._Window(
        make_method(method), TwoPoints(), Guidance(), 2, torch.float64, sigmas
    )
    x = start * sigmas[0]
    state = 3 * noise(3, (steps, 3, 2, 2), seed=1)  # a guess that knows nothing
    trajectory = window.guess(x)
    for _ in range(steps):
        trajectory = window.sweep(trajectory, x, LABEL)
    for done in range(1, steps + 1):
        state = window.sweep(state, x, LABEL)
        torch.testing.assert_close(state[:, :done], trajectory[:, :done], rtol=0, atol=1e-12)
    torch.testing.assert_close(window.end(state), serial(sampler), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_the_images_are_those_of_the_serial_sampler(method: str, solver: str) -> None:
    sampler, errors = Sampler(method=method, steps=18), []
    for tol in (1e-2, 1e-4, 1e-9):
        images, report = sample_parallel(
            TwoPoints(), noise(3), LABEL, sampler=sampler, solver=solver, tol=tol, max_sweeps=40
        )
        assert report.converged.all() and (report.residual <= tol).all()
        errors.append((images - serial(sampler)).abs().max().item())
    assert errors[-1] < 1e-7 and errors[-1] < errors[0] < 1


@pytest.mark.parametrize("method", METHODS)
def test_fewer_calls_in_a_row_and_all_of_them_counted(method: str) -> None:
    counter, sampler = CountingDenoiser(problem()), Sampler(method=method, steps=32)
    images, report = sample_parallel(counter, noise(3), LABEL, sampler=sampler, tol=1e-4)
    exact = sample(problem(), noise(3), LABEL, sampler=sampler)
    torch.testing.assert_close(images, exact, rtol=0, atol=1e-3)
    a_sweep = 2 if method == "heun" else 1
    assert report.calls == counter.calls == a_sweep * report.sweeps
    # What has become right is not asked for again: after n sweeps these are n points.
    assert report.evaluations == counter.rows / 3 <= report.sweeps * report.serial_evaluations
    saved = report.sweeps * report.serial_evaluations - report.evaluations
    assert saved >= (a_sweep * report.sweeps * (report.sweeps - 1) / 2)
    assert report.serial_calls == report.serial_evaluations == 31 * a_sweep + 1
    assert report.steps == 32 and 4 * report.calls < report.serial_calls


@pytest.mark.parametrize("method", METHODS)
def test_at_worst_it_costs_half_the_square_of_the_steps_and_no_call_more(method: str) -> None:
    # A tolerance of zero: every point must come out the same bit for bit.
    counter, sampler = CountingDenoiser(TwoPoints()), Sampler(method=method, steps=9)
    images, report = sample_parallel(counter, noise(3), LABEL, sampler=sampler, tol=0.0)
    torch.testing.assert_close(images, serial(sampler), rtol=0, atol=1e-12)
    assert report.converged.all() and (report.residual == 0).all()
    if method == "heun":
        assert report.calls <= 2 * 9 and report.evaluations <= 2 * 45 - 9
    else:
        assert report.calls <= 9 and report.evaluations <= 45


def test_scaled_points_need_fewer_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, start, sweeps = Sampler(method="euler", steps=32), noise(3), {}
    for deviation in (0.5, 1e6):  # the latter leaves x as it is
        monkeypatch.setattr(parallel, "_SIGMA_DATA", deviation)
        part = parallel._Window(
            make_method("euler"), TwoPoints(), Guidance(), 2, torch.float64, sampler.sigmas()
        )
        x = start * sampler.sigmas()[0]
        state, sweeps[deviation] = part.guess(x), 0
        while (part.end(state) - serial(sampler)).abs().max() > 1e-2:
            state = part.sweep(state, x, LABEL)
            sweeps[deviation] += 1
    assert sweeps[0.5] < 0.8 * sweeps[1e6]


def test_gaussian_images_of_the_assumed_deviation_take_no_search() -> None:
    # In units of its standard deviation such a trajectory stays where it is, but for the steps'
    # own error and the mean: a fine grid and no mean leave nothing to find.
    denoiser = problem()
    denoiser.std = torch.full((3,), 0.5, dtype=torch.float64)
    denoiser.mean = torch.zeros(3, dtype=torch.float64)
    sampler = Sampler(steps=100)
    _, report = sample_parallel(denoiser, noise(3), LABEL, sampler=sampler, tol=1e-2)
    assert report.sweeps == 1


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("window", [1, 5, 12, 99])
def test_a_window_asks_less_often_in_all(method: str, window: int) -> None:
    sampler = Sampler(method=method, steps=12)
    images, report = sample_parallel(
        TwoPoints(), noise(3), LABEL, sampler=sampler, tol=1e-10, window=window
    )
    torch.testing.assert_close(images, serial(sampler), rtol=0, atol=1e-8)
    _, whole = sample_parallel(TwoPoints(), noise(3), LABEL, sampler=sampler, tol=1e-10)
    assert report.converged.all()
    assert (report.evaluations < whole.evaluations) == (window < 12)
    assert (report.sweeps > whole.sweeps) == (window < 12)


@settings(max_examples=30)
@given(scale=st.floats(0.5, 4), low=st.floats(0, 1), span=st.floats(0.5, 90))
def test_guidance_in_an_interval(scale: float, low: float, span: float) -> None:
    guidance = Guidance(scale=scale, interval=(low, low + span))
    counter, sampler = CountingDenoiser(TwoPoints()), Sampler(steps=6)
    images, report = sample_parallel(
        counter, noise(3), LABEL, sampler=sampler, guidance=guidance, tol=1e-10, null_label=2
    )
    torch.testing.assert_close(images, serial(sampler, guidance=guidance), rtol=0, atol=1e-7)
    assert report.serial_evaluations == sampler.nfe(guidance)
    assert counter.calls <= 2 * report.sweeps  # guided and other levels go in one call


def test_a_sample_does_not_depend_on_its_batch_mates() -> None:
    sampler, start = Sampler(steps=10), noise(3) * torch.tensor([0.1, 1.0, 3.0]).reshape(3, 1, 1, 1)
    together, report = sample_parallel(
        TwoPoints(), start, LABEL, sampler=sampler, solver="anderson"
    )
    for row in range(3):
        one = slice(row, row + 1)
        alone, _ = sample_parallel(
            TwoPoints(), start[one], LABEL[one], sampler=sampler, solver="anderson"
        )
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-10)
    assert report.residual.shape == report.converged.shape == (3,)


def test_without_labels_in_float32_and_empty() -> None:
    sampler = Sampler(steps=8)
    images, _ = sample_parallel(TwoPoints(), noise(2).float(), sampler=sampler, tol=1e-6)
    expected = sample(TwoPoints(), noise(2).float(), sampler=sampler)
    assert images.dtype == torch.float64
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    images, report = sample_parallel(TwoPoints(), noise(0), sampler=sampler)
    assert images.shape == (0, 3, 2, 2) and report.calls == 0 and report.residual.shape == (0,)


def test_a_denoiser_that_fails_is_reported_and_ends() -> None:
    def broken(x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        assert label is not None
        return torch.where(label.reshape(-1, 1, 1, 1) == 1, torch.nan, 0 * x)

    images, report = sample_parallel(broken, noise(3), LABEL, sampler=Sampler(steps=4))
    assert report.converged.tolist() == [True, False, False]
    assert report.residual.isnan().tolist() == [False, True, True]
    assert images[0].abs().max() < 1e-12


class SteppingBack(Euler):
    """A made-up method that asks at a point which depends on its memory."""

    def step(
        self, denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Any = None
    ) -> tuple[Tensor, Any]:
        asked = x if memory is None else 0.9 * x + 0.1 * memory
        return super().step(denoise, asked, sigma, sigma_next)[0], asked


def test_a_question_that_depends_on_memory_is_asked_again() -> None:
    sampler = Sampler(method=SteppingBack(), steps=6)
    images, report = sample_parallel(TwoPoints(), noise(3), LABEL, sampler=sampler, tol=1e-12)
    torch.testing.assert_close(images, serial(sampler), rtol=0, atol=1e-10)
    assert report.calls > report.sweeps


def test_mistakes_are_named() -> None:
    start = noise(2)
    with pytest.raises(ValueError, match="sampling in parallel is deterministic"):
        sample_parallel(TwoPoints(), start, sampler=Sampler(churn=Churn(amount=1)))
    with pytest.raises(ValueError, match="'dpmpp-2m' is a multi-step method"):
        counter = CountingDenoiser(TwoPoints())
        sample_parallel(counter, start, sampler=Sampler(method="dpmpp-2m"), window=6)
    assert counter.calls == 0
    whole = Sampler(method="dpmpp-2m", steps=3)
    assert sample_parallel(TwoPoints(), start, sampler=whole, window=3)[1].converged.all()
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        sample_parallel(TwoPoints(), start, window=0)
    with pytest.raises(ValueError, match="max_sweeps must be at least 1, got 0"):
        sample_parallel(TwoPoints(), start, max_sweeps=0)
    for tol in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"tol must be finite and not negative, got {tol}"):
            sample_parallel(TwoPoints(), start, tol=tol)
    with pytest.raises(ValueError, match="Did you mean 'anderson'"):
        sample_parallel(TwoPoints(), start, solver="andersen")
    with pytest.raises(ValueError, match="needs labels"):
        sample_parallel(TwoPoints(), start, guidance=Guidance(scale=2.0))
