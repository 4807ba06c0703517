from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqgen.teachers import VE, VP, Karras, Linear
from deqgen.teachers.schedules import SCHEDULES, make_schedule


def test_karras_is_the_formula_of_the_paper() -> None:
    sigmas = Karras().sigmas(18).tolist()
    assert len(sigmas) == 19
    for i, sigma in enumerate(sigmas[:-1]):
        root = 80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
        assert sigma == pytest.approx(root**7, rel=1e-14)
    assert sigmas[-1] == 0


@given(
    steps=st.integers(1, 60),
    low=st.floats(1e-4, 0.5),
    span=st.floats(1.5, 1e4),
    rho=st.floats(0.5, 10),
)
def test_levels_fall_from_sigma_max_to_zero(
    steps: int, low: float, span: float, rho: float
) -> None:
    sigmas = Karras(sigma_min=low, sigma_max=low * span, rho=rho).sigmas(steps)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (steps + 1,)
    assert (sigmas.diff() < 0).all()
    assert sigmas[0].item() == pytest.approx(low * span, rel=1e-12)
    assert sigmas[-1] == 0
    if steps > 1:
        assert sigmas[-2].item() == pytest.approx(low, rel=1e-9)


def test_vp_is_the_formula_of_the_paper() -> None:
    sigmas = VP().sigmas(10).tolist()
    for i, sigma in enumerate(sigmas[:-1]):
        t = 1 + i / 9 * (1e-3 - 1)
        assert sigma == pytest.approx(math.sqrt(math.exp(19.9 * t**2 / 2 + 0.1 * t) - 1), rel=1e-12)
    assert sigmas[0] == pytest.approx(152.2, abs=0.1) and sigmas[-1] == 0


def test_ve_is_the_formula_of_the_paper() -> None:
    sigmas = VE().sigmas(10).tolist()
    for i, sigma in enumerate(sigmas[:-1]):
        assert sigma**2 == pytest.approx(100**2 * (0.02**2 / 100**2) ** (i / 9), rel=1e-12)
    assert sigmas[-1] == 0


def test_linear_is_evenly_spaced_and_karras_with_rho_one() -> None:
    sigmas = Linear(sigma_min=1.0, sigma_max=5.0).sigmas(5)
    assert sigmas.tolist() == [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    torch.testing.assert_close(Linear().sigmas(13), Karras(rho=1.0).sigmas(13))


@pytest.mark.parametrize("name", ["linear", "ve", "vp"])
@given(steps=st.integers(1, 200))
def test_every_schedule_falls_to_zero_and_survives_its_description(name: str, steps: int) -> None:
    schedule = make_schedule(name)
    sigmas = schedule.sigmas(steps)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (steps + 1,)
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0
    described = schedule.describe()
    assert make_schedule(described.pop("name"), **described) == schedule
    assert sorted(SCHEDULES) == ["karras", "linear", "ve", "vp"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("linear", {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ("ve", {"sigma_max": 0.01}, "0 < sigma_min < sigma_max"),
        ("vp", {"beta_d": 0.0}, "positive rates"),
        ("vp", {"beta_min": float("nan")}, "positive rates"),
        ("vp", {"epsilon": 1.0}, "between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_schedule(name, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 0.0},
        {"sigma_min": 2.0, "sigma_max": 1.0},
        {"sigma_max": float("inf")},
        {"sigma_min": float("nan")},
        {"rho": 0.0},
    ],
)
def test_impossible_levels_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"sigma_min|rho"):
        Karras(**options)


def test_names_and_options_are_checked() -> None:
    assert make_schedule("karras", rho=5.0) == Karras(rho=5.0)
    with pytest.raises(ValueError, match=r"unknown schedule 'karas'\. Did you mean 'karras'\?"):
        make_schedule("karas")
    with pytest.raises(TypeError, match="Did you mean 'sigma_min'"):
        make_schedule("karras", sigma_mim=0.1)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        Karras().sigmas(0)
