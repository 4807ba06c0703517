"""The kernel distance: by brute force, against torchmetrics, and unbiased around zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.evaluation import EvaluationInputError, kernel, kernel_distance, squared_mmd
from tests.evaluation.test_frechet import Flat, draw, rotation

SEEDS = st.integers(0, 10_000)


def by_hand(x: Tensor, y: Tensor) -> float:
    """Every pair in a loop of Python."""
    a, b = x.double().numpy(), y.double().numpy()

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return float((u @ v / len(u) + 1) ** 3)

    n, m = len(a), len(b)
    xx = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in a for v in b) / (n * m)


@given(seed=SEEDS, count=st.integers(2, 9), others=st.integers(2, 9), size=st.integers(1, 6))
def test_it_is_the_sum_over_all_pairs(seed: int, count: int, others: int, size: int) -> None:
    x, y = draw(seed, count, size), draw(seed + 1, others, size)
    wanted = by_hand(x, y)
    assert squared_mmd(x, y) == pytest.approx(wanted, rel=1e-9, abs=1e-9 * abs(wanted) + 1e-9)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(0, 50, 4), draw(1, 31, 4)
    whole = squared_mmd(x, y)
    monkeypatch.setattr(kernel, "_BLOCK", 7)
    assert squared_mmd(x, y) == pytest.approx(whole, rel=1e-12)


@given(seed=SEEDS, size=st.integers(1, 6))
def test_neither_order_nor_rotation_matter(seed: int, size: int) -> None:
    x, y = draw(seed, 20, size), draw(seed + 1, 15, size)
    wanted = squared_mmd(x, y)
    turn = rotation(seed, size)
    assert squared_mmd(x.flip(0) @ turn, y.roll(3, dims=0) @ turn) == pytest.approx(
        wanted, rel=1e-9, abs=1e-8
    )
    assert squared_mmd(y, x) == pytest.approx(wanted, rel=1e-12, abs=1e-9)


def test_it_is_unbiased_around_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor(
        [
            squared_mmd(*torch.randn(2, 30, 5, generator=generator, dtype=torch.float64))
            for _ in range(400)
        ]
    )
    error = float(found.std()) / 20
    assert abs(float(found.mean())) < 3 * error, "the mean of 400 is 0 within its error"
    assert 0.3 < float((found < 0).double().mean()) < 0.7, "it lies on both sides"


def test_subsets_estimate_the_same_with_their_own_seed() -> None:
    x, y = draw(0, 200, 4) / 4, draw(1, 150, 4) / 4
    exact = squared_mmd(x, y)
    torch.manual_seed(1)
    mean, std = kernel_distance(x, y, subsets=200, subset_size=50)
    torch.manual_seed(2)  # the global generator is not asked
    assert kernel_distance(x, y, subsets=200, subset_size=50) == (mean, std)
    assert kernel_distance(x, y, subsets=200, subset_size=50, seed=1) != (mean, std)
    assert std > 0
    assert mean == pytest.approx(exact, abs=4 * std / 200**0.5)
    whole = kernel_distance(x[:150], y, subsets=2, subset_size=150)
    assert whole == pytest.approx((squared_mmd(x[:150], y), 0.0), abs=1e-9)


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save")
def test_it_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is a dev extra")
    real, fake = draw(3, 40, 16) / 4, draw(4, 40, 16) / 4
    metric = image.KernelInceptionDistance(Flat(), subsets=3, subset_size=40)
    metric.update(real.reshape(-1, 1, 4, 4), real=True)
    metric.update(fake.reshape(-1, 1, 4, 4), real=False)
    mean, std = metric.compute()  # every subset is everything: nothing is drawn
    ours = kernel_distance(fake, real, subsets=3, subset_size=40)
    assert ours == pytest.approx((float(mean), float(std)), rel=1e-6, abs=1e-6)


def test_what_cannot_be_drawn_is_refused() -> None:
    x = draw(0, 9, 3)
    for options in ({"subset_size": 10}, {"subset_size": 1}, {"subsets": 0, "subset_size": 5}):
        with pytest.raises(EvaluationInputError, match=r"cannot be drawn.*2 to 9 images here"):
            kernel_distance(x, x, **options)
    with pytest.raises(EvaluationInputError, match=r"got \(9, 3\) and \(9, 2\)"):
        squared_mmd(x, x[:, :2])
    with pytest.raises(EvaluationInputError, match=r"at least 2 images and 2 reference.*1 and 9"):
        squared_mmd(x[:1], x)
    with pytest.raises(EvaluationInputError, match=r"finite"):
        squared_mmd(x, x * torch.nan)
