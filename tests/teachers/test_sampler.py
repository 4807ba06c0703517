from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.teachers import (
    VE,
    VP,
    Churn,
    CountingDenoiser,
    Euler,
    Guidance,
    Heun,
    Karras,
    Linear,
    Sampler,
    sample,
)
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


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("dpmpp-2m", 2)])
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


GUIDANCES = st.builds(
    Guidance,
    scale=st.sampled_from([1.0, 1.5, 4.0]),
    interval=st.one_of(
        st.none(),
        st.tuples(st.floats(0, 1), st.floats(1.1, 100)),
        st.tuples(st.sampled_from(Karras().sigmas(7).tolist()), st.just(90.0)),
    ),
)
CHURNS = st.one_of(
    st.none(),
    st.builds(Churn, amount=st.floats(0.1, 20), low=st.floats(0, 1), high=st.floats(1, 90)),
)


@given(
    method=st.sampled_from(["euler", "heun", "dpmpp-2m"]),
    schedule=st.sampled_from(["karras", "linear", "ve", "vp"]),
    steps=st.integers(1, 12),
    guidance=GUIDANCES,
    churn=CHURNS,
)
def test_counted_evaluations_are_those_of_the_formula(
    method: str, schedule: str, steps: int, guidance: Guidance, churn: Churn | None
) -> None:
    counter = CountingDenoiser(problem())
    sampler = Sampler(method=method, schedule=schedule, steps=steps, churn=churn)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    sample(
        counter,
        noise(3),
        LABEL,
        sampler=sampler,
        guidance=guidance,
        null_label=2,
        generators=generators,
    )
    # Where each step begins (churn raises that) and, for Heun, where it ends, but never zero.
    sigmas = sampler.sigmas()
    visited = [churn.raised(sigma, steps) if churn else sigma for sigma in sigmas[:-1]]
    visited += sigmas[1:-1] if method == "heun" else []
    assert counter.calls == len(visited)
    assert counter.rows == 3 * sum(2 if guidance.active(sigma) else 1 for sigma in visited)
    assert counter.rows == 3 * sampler.nfe(guidance)


def test_the_published_cost_is_35() -> None:
    assert Sampler().nfe() == 35
    assert Sampler(method="euler").nfe() == 18
    assert Sampler(method="dpmpp-2m").nfe() == 18
    assert Sampler().nfe(Guidance(scale=2.0)) == 70
    imagenet = Churn(amount=40, low=0.05, high=50, noise=1.003)
    assert Sampler(steps=256, churn=imagenet).nfe() == 511


@pytest.mark.parametrize("method", ["heun", "dpmpp-2m"])
def test_a_row_does_not_depend_on_its_batch(method: str) -> None:
    denoiser, start, sampler = problem(), noise(3), Sampler(method=method)
    together = sample(denoiser, start, LABEL, sampler=sampler)
    rows = [(start[i : i + 1], LABEL[i : i + 1]) for i in range(3)]
    alone = torch.cat([sample(denoiser, *row, sampler=sampler) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_the_first_and_last_step_of_dpmpp_2m_are_those_of_euler() -> None:
    denoiser, start = problem(), noise(3)
    for steps in (1, 2):  # with two, the second is the step to zero
        images = [
            sample(denoiser, start, LABEL, sampler=Sampler(method=method, steps=steps))
            for method in ("dpmpp-2m", "euler")
        ]
        torch.testing.assert_close(*images, rtol=1e-12, atol=1e-13)
    third = [
        sample(denoiser, start, LABEL, sampler=Sampler(method=method, steps=3))
        for method in ("dpmpp-2m", "euler")
    ]
    assert (third[0] - third[1]).abs().max() > 1e-3


def reference_dpmpp_2m(
    denoiser: Gaussian, start: np.ndarray, label: np.ndarray, sigmas: list[float]
) -> np.ndarray:
    """Algorithm 2 of arXiv 2211.01095 for alpha = 1, with its h, r and D, in numpy."""
    mean = denoiser.mean.numpy()[label].reshape(-1, 1, 1, 1)
    variance = denoiser.std.numpy().reshape(1, -1, 1, 1) ** 2

    def clean(x: np.ndarray, t: float) -> np.ndarray:
        return (variance * x + t**2 * mean) / (variance + t**2)

    x, before, h_before = start * sigmas[0], None, None
    for sigma, sigma_next in itertools.pairwise(sigmas[:-1]):
        h = -math.log(sigma_next) - -math.log(sigma)
        now = clean(x, sigma)
        d = now
        if before is not None:
            r = h_before / h
            d = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        x = sigma_next / sigma * x - (math.exp(-h) - 1) * d
        before, h_before = now, h
    return clean(x, sigmas[-2])


@pytest.mark.parametrize("schedule", [Karras(), Linear(), VE(), VP()], ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [3, 20])
def test_dpmpp_2m_agrees_with_an_independent_reference(schedule: Karras, steps: int) -> None:
    denoiser, start = problem(), noise(3)
    sampler = Sampler(method="dpmpp-2m", schedule=schedule, steps=steps)
    images = sample(denoiser, start, LABEL, sampler=sampler)
    expected = reference_dpmpp_2m(denoiser, start.numpy(), LABEL.numpy(), sampler.sigmas())
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("schedule", ["linear", "ve", "vp"])
def test_every_schedule_leads_to_the_images(schedule: str) -> None:
    denoiser, start = problem(), noise(3)
    sampler = Sampler(schedule=schedule, steps=2000)
    exact = denoiser.solution(start, sampler.sigmas()[0], denoiser.centre(start, LABEL))
    images = sample(denoiser, start, LABEL, sampler=sampler)
    torch.testing.assert_close(images, exact, rtol=0, atol=5e-3)


def test_a_sampler_survives_its_description() -> None:
    sampler = Sampler(method="euler", steps=7, schedule=Karras(rho=3.0))
    assert Sampler.from_dict(sampler.describe()) == sampler
    assert Sampler.from_dict({}) == Sampler()
    assert Sampler(method=Heun(), schedule="karras").describe() == Sampler().describe()
    assert Sampler(method=Euler()).nfe() == 18
    for schedule in (VP(epsilon=1e-4), VE(sigma_max=50.0), Linear(sigma_min=0.01)):
        for churn in (None, Churn(amount=3), Churn(amount=40, low=0.05, high=50, noise=1.003)):
            sampler = Sampler(method="dpmpp-2m", schedule=schedule, churn=churn)
            # No infinity goes into a manifest: JSON knows none.
            described = json.loads(json.dumps(sampler.describe(), allow_nan=False))
            assert Sampler.from_dict(described) == sampler


def test_a_deterministic_sampler_does_not_mention_churn() -> None:
    # Pair folders made before there was churn compare what they say with this.
    assert Sampler().describe() == {
        "method": "heun",
        "schedule": {"name": "karras", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "steps": 18,
    }


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'heun'"):
        Sampler(method="huen")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Sampler(steps=0)
    with pytest.raises(TypeError, match="Did you mean 'steps'"):
        Sampler.from_dict({"step": 3})
    with pytest.raises(TypeError, match="churn must be a Churn or None, got 40"):
        Sampler(churn=40)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Did you mean 'amount'"):
        Sampler.from_dict({"churn": {"amuont": 3.0}})
    with pytest.raises(ValueError, match=r"floating point \(B, C, H, W\)"):
        sample(problem(), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="needs labels"):
        sample(problem(), noise(1), guidance=Guidance(scale=2.0))
    with pytest.raises(TypeError, match="num_classes"):
        sample(lambda x, s, y: x, noise(1), LABEL[:1], guidance=Guidance(scale=2.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"steps": True}, "steps must be an integer, got True"),
        ({"steps": "18"}, "steps must be an integer, got '18'"),
        ({"method": None}, "a sampling method is a name or an object .*got None"),
        ({"method": Heun}, "a sampling method is a name or an object such as Heun"),
        ({"schedule": {"name": "karras"}}, "a schedule is a name or an object .*got {'name'"),
        ({"schedule": Karras}, "a schedule is a name or an object such as Karras"),
    ],
)
def test_values_of_another_kind_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Sampler(**options)
