"""The inception-style score and class accuracy, on logits where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqgen.evaluation import EvaluationInputError, class_accuracy, inception_style_score

SEEDS = st.integers(0, 10_000)


def draw(seed: int, count: int, classes: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, classes, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("classes", [2, 10])
def test_certain_and_balanced_scores_the_number_of_classes(classes: int) -> None:
    logits = 1e3 * torch.eye(classes, dtype=torch.float64).repeat(4, 1)
    assert inception_style_score(logits) == pytest.approx(classes, rel=1e-12)


def test_certain_of_half_the_classes_scores_half() -> None:
    logits = 1e3 * torch.eye(10)[torch.arange(20) % 5]
    assert inception_style_score(logits) == pytest.approx(5, rel=1e-6)


def test_the_same_opinion_of_every_image_scores_one() -> None:
    assert inception_style_score(draw(0, 1, 10).repeat(7, 1)) == pytest.approx(1, rel=1e-12)


def test_two_images_by_hand() -> None:
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.3, 0.7])
    marginal = (p + q) / 2
    divergence = (p * (p / marginal).log()).sum() + (q * (q / marginal).log()).sum()
    logits = torch.stack([p, q]).log()
    assert inception_style_score(logits) == pytest.approx(math.exp(divergence / 2), rel=1e-6)


@given(seed=SEEDS, count=st.integers(1, 30), classes=st.integers(2, 10))
def test_it_stays_within_its_bounds_whatever_the_order(seed: int, count: int, classes: int) -> None:
    logits = draw(seed, count, classes)
    score = inception_style_score(logits)
    assert 1 - 1e-12 <= score <= classes + 1e-9
    assert inception_style_score(logits.flip(0).roll(1, dims=1)) == pytest.approx(score, rel=1e-12)
    # A constant added to an image's logits changes none of its probabilities.
    assert inception_style_score(logits + logits[:, :1]) == pytest.approx(score, rel=1e-10)


@given(seed=SEEDS, count=st.integers(1, 30))
def test_accuracy_counts_the_recognised(seed: int, count: int) -> None:
    logits = draw(seed, count, 10)
    labels = logits.argmax(dim=1)
    wrong = count // 3
    labels[:wrong] = (labels[:wrong] + 1) % 10
    assert class_accuracy(logits, labels) == pytest.approx((count - wrong) / count)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 10, 3]), "between 0 and 9, got 10"),
        (torch.tensor([0, -1, 3]), "between 0 and 9, got -1"),
        (torch.tensor([0, 1]), r"\(3,\), one an image, got \(2,\)"),
        (torch.tensor([[0], [1], [2]]), r"\(3,\), one an image, got \(3, 1\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "tensor of integers, got torch.float32"),
        ([0, 1, 2], "tensor of integers, got list"),
    ],
)
def test_wrong_labels_get_one_sentence(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(EvaluationInputError, match=message):
        class_accuracy(torch.zeros(3, 10), labels)


def test_wrong_logits_get_one_sentence() -> None:
    with pytest.raises(EvaluationInputError, match="at least one row"):
        inception_style_score(torch.zeros(0, 10))
    with pytest.raises(EvaluationInputError, match=r"\(N, K\)"):
        inception_style_score(torch.zeros(10))
    with pytest.raises(EvaluationInputError, match="finite"):
        inception_style_score(torch.full((2, 10), torch.nan))
