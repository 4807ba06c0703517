"""The one call: its numbers, what moves them, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from deqgen.evaluation import (
    CifarClassifier,
    EvaluationInputError,
    Reference,
    Report,
    evaluate,
    load_classifier,
    make_reference,
)
from tests.evaluation.patterns import patterns


@pytest.fixture(scope="module")
def images() -> Tensor:
    return patterns(96)


@pytest.fixture(scope="module")
def own(images: Tensor) -> Reference:
    """The images themselves as a reference."""
    return make_reference(images, "colour waves")


def test_a_report_says_what_was_measured(images: Tensor) -> None:
    labels = torch.arange(len(images)) % 10
    report = evaluate(images, labels)
    assert report.images == 96
    assert report.fd_cifar10 > 1, "colour waves are no photographs"
    assert 1 <= report.inception_style_score <= 10
    logits = load_classifier().logits(images)
    expected = (logits.argmax(dim=1) == labels).float().mean()
    assert report.accuracy == pytest.approx(float(expected))
    assert "cifar10" in report.reference
    assert "50000" in report.reference
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert Report(**report.to_dict()) == report  # type: ignore[arg-type]


def test_without_labels_there_is_no_accuracy(images: Tensor) -> None:
    assert evaluate(images[:8]).accuracy is None


def test_the_batch_size_does_not_matter(images: Tensor) -> None:
    one, other = evaluate(images, batch_size=96), evaluate(images, batch_size=13)
    assert other.fd_cifar10 == pytest.approx(one.fd_cifar10, rel=1e-5)
    assert other.inception_style_score == pytest.approx(one.inception_style_score, rel=1e-5)


def test_the_same_call_gives_the_same_number(images: Tensor) -> None:
    assert evaluate(images[:20]) == evaluate(images[:20].clone())


def test_the_distance_to_oneself_is_nought_and_grows_with_damage(
    images: Tensor, own: Reference
) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    distances = [
        evaluate(images + strength * noise, reference=own).fd_cifar10
        for strength in (0.0, 0.05, 0.2, 0.6)
    ]
    assert distances[0] < 1e-4
    assert distances[0] < distances[1] < distances[2] < distances[3]


def test_fewer_images_are_further_away(images: Tensor, own: Reference) -> None:
    few, more = (evaluate(images[::step], reference=own).fd_cifar10 for step in (12, 3))
    assert few > more > 0


def test_two_images_are_enough_and_one_is_not(images: Tensor) -> None:
    assert evaluate(images[:2]).images == 2
    with pytest.raises(EvaluationInputError, match=r"at least 2 images.*got 1"):
        evaluate(images[:1])
    with pytest.raises(EvaluationInputError, match="at least 2 images, got 0"):
        make_reference(images[:0], "nothing")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 10]), "between 0 and 9, got 10"),
        (torch.tensor([0, 1, 2]), r"\(2,\), one an image, got \(3,\)"),
        (torch.tensor([0.5, 1.0]), "integers"),
    ],
)
def test_wrong_labels_are_refused_before_anything_is_measured(
    images: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises(EvaluationInputError, match=message):
        evaluate(images[:2], labels)


def test_wrong_images_and_batch_sizes_are_refused(images: Tensor) -> None:
    with pytest.raises(EvaluationInputError, match=r"got \(2, 3, 16, 16\)"):
        evaluate(torch.zeros(2, 3, 16, 16))
    with pytest.raises(EvaluationInputError, match="finite"):
        evaluate(images[:2] / 0)
    with pytest.raises(EvaluationInputError, match="batch_size must be at least 1, got 0"):
        evaluate(images[:2], batch_size=0)


def test_another_classifier_needs_its_own_reference(images: Tensor) -> None:
    other = CifarClassifier().eval()
    with pytest.raises(EvaluationInputError, match="make_reference"):
        evaluate(images[:4], classifier=other)
    reference = make_reference(images[:4], "four waves", classifier=other)
    report = evaluate(images[:4], classifier=other, reference=reference)
    assert report.fd_cifar10 < 1e-4
    assert report.reference == "four waves"


# Recorded when the weights were shipped: any change of weights, layout, rounding or scale shows.
RECORDED = {"fd_cifar10": 115.5699, "inception_style_score": 1.862539}


def test_recorded_numbers_are_reproduced(images: Tensor) -> None:
    report = evaluate(images).to_dict()
    assert {name: report[name] for name in RECORDED} == pytest.approx(RECORDED, rel=1e-3)
