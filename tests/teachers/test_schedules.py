from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqgen.teachers import Karras
from deqgen.teachers.schedules import make_schedule


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
