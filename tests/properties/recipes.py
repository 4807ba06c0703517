"""What hypothesis draws: problems of random size, spectrum, precision and seed.

A recipe prints as the call that rebuilds its problem; a problem itself prints pages of numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from deqgen_solvers.problems import (
    Problem,
    complex_contraction,
    rotation,
    tanh_rnn,
    transformer_cell,
    with_spectrum,
)
from tests.contracts.table import FAILURES, METHODS

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
seeds = st.integers(0, 9999)


@dataclass(frozen=True)
class Recipe:
    make: Callable[..., Problem]
    options: dict[str, Any]

    def __call__(self, **more: Any) -> Problem:
        return self.make(**{"batch": 2, **self.options, **more})

    def __repr__(self) -> str:
        return f"{self.make.__name__}(**{self.options})"


def able(*problems: str) -> list[str]:
    """Methods that solve these problems of the table: they must solve the like of them."""
    return [m for m in METHODS if not any((m, problem) in FAILURES for problem in problems)]


@st.composite
def contractions(
    draw: st.DrawFn,
    least: float,
    most: float,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    largest: int = 24,
) -> Recipe:
    """Affine maps of a spectral radius in [least, most], dense towards 1: normal and non-normal."""
    radius = 1 - (1 - least) * ((1 - most) / (1 - least)) ** draw(st.floats(0, 1))
    options = {"size": draw(st.integers(1, largest)), "seed": draw(seeds)}
    options["dtype"] = draw(st.sampled_from(dtypes))
    if options["dtype"].is_complex and draw(st.booleans()):
        return Recipe(complex_contraction, {"norm": radius, **options})
    skew = draw(st.sampled_from((0.0, 0.1, 0.3)))
    return Recipe(with_spectrum, {"low": -radius, "high": radius, "skew": skew, **options})


@st.composite
def beyond_picard(draw: st.DrawFn) -> Recipe:
    """Affine maps with eigenvalues left of -1, right of 1, or around the unit circle."""
    options = {"size": 2 * draw(st.integers(1, 4)), "seed": draw(seeds)}
    options["dtype"] = draw(st.sampled_from(DTYPES[:2]))
    kind = draw(st.sampled_from(("left", "right", "around")))
    if kind == "around":
        return Recipe(rotation, {"radius": draw(st.floats(1.05, 1.6)), **options})
    far = draw(st.floats(1.3, 4.0))
    low, high = (-far, 0.5) if kind == "left" else (1.2, far)
    skew = draw(st.sampled_from((0.0, 0.2)))
    options["dtype"] = draw(st.sampled_from(DTYPES))
    return Recipe(with_spectrum, {"low": low, "high": high, "skew": skew, **options})


@st.composite
def cells(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES[:2]) -> Recipe:
    """tanh-RNNs and transformer blocks whose weights are small enough for plain iteration."""
    options = {"seed": draw(seeds), "dtype": draw(st.sampled_from(dtypes)), "max_steps": 1000}
    if draw(st.booleans()):
        gain, size = draw(st.floats(0.1, 0.9)), draw(st.integers(1, 24))
        return Recipe(tanh_rnn, {"gain": gain, "size": size, **options})
    gain, width, tokens = (
        draw(st.floats(0.1, 0.7)),
        draw(st.integers(3, 8)),
        draw(st.integers(1, 5)),
    )
    return Recipe(transformer_cell, {"gain": gain, "width": width, "tokens": tokens, **options})
