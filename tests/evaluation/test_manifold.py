"""Precision, recall, density, coverage: by brute force, at their limits, and in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.evaluation import (
    EvaluationInputError,
    Manifold,
    ManifoldScores,
    manifold,
    manifold_scores,
)
from tests.evaluation.test_frechet import draw, rotation

SEEDS = st.integers(0, 10_000)


def scores(fake: Tensor, real: Tensor) -> ManifoldScores:
    return manifold_scores(Manifold.of(fake), Manifold.of(real))


def by_hand(fake: Tensor, real: Tensor) -> ManifoldScores:
    """All distances at once, from differences, and whole matrices of flags."""
    x, y = real.double().numpy(), fake.double().numpy()

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(a[:, None] - b[None]).sum(axis=2))

    def radii(a: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(a, a), axis=1)[:, k]  # column 0 is the vector itself

    between = distances(x, y)  # (M, N)
    five = between <= radii(x, 5)[:, None]
    return ManifoldScores(
        precision=float((between <= radii(x, 3)[:, None]).any(axis=0).mean()),
        recall=float((between <= radii(y, 3)[None]).any(axis=1).mean()),
        density=float(five.sum() / (5 * len(y))),
        coverage=float(five.any(axis=1).mean()),
    )


@given(
    seed=SEEDS,
    fakes=st.integers(6, 40),
    reals=st.integers(6, 40),
    size=st.integers(1, 6),
    shift=st.floats(0, 3),
)
def test_it_is_what_the_definition_says(
    seed: int, fakes: int, reals: int, size: int, shift: float
) -> None:
    fake, real = draw(seed, fakes, size), draw(seed + 1, reals, size) + shift
    assert scores(fake, real) == by_hand(fake, real)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, real = draw(0, 90, 4), draw(1, 70, 4)
    whole = scores(fake, real)
    monkeypatch.setattr(manifold, "_ROWS", 8)
    monkeypatch.setattr(manifold, "_COLUMNS", 11)
    assert scores(fake, real) == whole == by_hand(fake, real)


@given(seed=SEEDS, count=st.integers(6, 40), size=st.integers(1, 6))
def test_a_set_is_at_one_with_itself(seed: int, count: int, size: int) -> None:
    same = scores(draw(seed, count, size), draw(seed, count, size))
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density >= 1, "every vector lies in its own ball and in five others on average"


@given(seed=SEEDS, shift=st.floats(0, 5))
def test_the_bounds(seed: int, shift: float) -> None:
    found = scores(draw(seed, 20, 3), draw(seed + 1, 30, 3) + shift)
    assert min(found.precision, found.recall, found.coverage) >= 0
    assert max(found.precision, found.recall, found.coverage) <= 1
    assert 0 <= found.density <= 30 / 5
    assert found.coverage <= min(1, found.density * 5 * 20 / 30) + 1e-12, "a ball needs an image"


@given(seed=SEEDS, size=st.integers(2, 5))
def test_neither_order_nor_rotation_matter(seed: int, size: int) -> None:
    fake, real = draw(seed, 20, size), draw(seed + 1, 25, size)
    turn = rotation(seed, size)
    assert scores(fake.flip(0) @ turn, real.roll(4, dims=0) @ turn) == scores(fake, real)


def test_far_away_is_nothing_and_one_mode_is_precise() -> None:
    real = draw(0, 60, 3)
    assert scores(draw(1, 60, 3) + 1e4, real) == ManifoldScores(0, 0, 0, 0)
    crowd = real[:1].repeat(40, 1)  # a generator that repeats one real image
    found = scores(crowd, real)
    assert found.precision == 1
    assert found.recall == 1 / 60, "its balls have no radius and hold that one image alone"
    assert 0 < found.coverage < 0.5
    doubled = crowd.float() * 1e3 / 7  # equal vectors, whatever the product of matrices rounds
    assert scores(doubled, doubled).recall == 1


def test_a_large_mean_in_float32_does_not_matter() -> None:
    fake, real = (draw(seed, 30, 4).float() + 300 for seed in (0, 1))
    assert scores(fake, real) == by_hand(fake, real)


def test_too_few_or_other_vectors_are_refused() -> None:
    x = draw(0, 9, 3)
    with pytest.raises(EvaluationInputError, match=r"at least 6 images.*got 5"):
        Manifold.of(x[:5])
    with pytest.raises(EvaluationInputError, match=r"finite"):
        Manifold.of(x / 0)
    with pytest.raises(EvaluationInputError, match=r"\(9, 3\) and \(9, 2\)"):
        manifold_scores(Manifold.of(x), Manifold.of(x[:, :2]))
