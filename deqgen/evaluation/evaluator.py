"""Images in, one small report out.

Letters: N images.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from deqgen.evaluation.classifier import CifarClassifier, check_images, load_classifier
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.frechet import Reference, fingerprint, frechet_distance, load_reference
from deqgen.evaluation.measuring import Measured, measure
from deqgen.evaluation.metrics import check_network
from deqgen.evaluation.scores import check_labels, class_accuracy, inception_style_score


@dataclass(frozen=True)
class Report:
    """What was measured on a set of images. None of these numbers is FID or the Inception score.

    Attributes:
        fd_cifar10: Frechet distance on the features of the shipped CIFAR-10 classifier, between
            the images and the reference. 0 is best. The features are scaled so that real training
            images have a total variance of about 100.
        inception_style_score: between 1 and 10, more is better; see
            :func:`deqgen.evaluation.inception_style_score`.
        accuracy: share of images recognised as the class asked for; None without labels.
        images: how many images were measured. Compare reports with equal numbers only.
        reference: what ``fd_cifar10`` is the distance to.
    """

    fd_cifar10: float
    inception_style_score: float
    accuracy: float | None
    images: int
    reference: str

    def to_dict(self) -> dict[str, float | int | str | None]:
        """The same as a plain dictionary, ready for JSON."""
        return dataclasses.asdict(self)


def evaluate(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    batch_size: int = 256,
    classifier: CifarClassifier | None = None,
    reference: Reference | None = None,
) -> Report:
    """Measure images against the CIFAR-10 training set.

    **This is not FID.** The features are those of a small CIFAR-10 classifier that ships with the
    package, not of the Inception network, so the numbers compare with each other and with nothing
    published.

    **The distance depends on the number of images.** With few images their covariance is poorly
    known and the distance comes out too large, even for real images; the model card
    (``deqgen/assets/cifar10_classifier.md``) lists this floor for several counts. Always compare
    equal counts; 5,000 images or more make a steady number.

    Args:
        images: (N, 3, 32, 32), floating point in [-1, 1], N at least 2. They are clamped and
            rounded to 256 levels first, as a saved PNG would be.
        labels: (N,), the class each image was asked to show (airplane 0 ... truck 9), or None.
        batch_size: images a forward pass; changes memory and time, and the result only by rounding.
        classifier: another network to measure with; needs its own ``reference``. None is the
            shipped one, moved to where the images are.
        reference: moments to compare with; None is the shipped CIFAR-10 training set (50,000 images
            of a JPEG copy). :func:`make_reference` computes others.

    Raises:
        EvaluationInputError: fewer than two images, another size or number of channels, values that
            are not finite, labels out of range, or a reference computed with another classifier.
    """
    check_images(images)
    if len(images) < 2:
        raise EvaluationInputError(
            f"at least 2 images are needed (better 5,000), got {len(images)}"
        )
    classifier = _embedded_classifier(str(images.device)) if classifier is None else classifier
    if labels is not None:
        check_labels(labels, len(images), classifier.num_classes)
    reference = _embedded_reference() if reference is None else reference
    check_network(classifier, reference)
    measured = _measure(images, batch_size, classifier)
    moments, logits = measured.moments, measured.logits
    assert logits is not None
    return Report(
        fd_cifar10=frechet_distance(
            moments.mean, moments.covariance, reference.mean, reference.covariance
        ),
        inception_style_score=inception_style_score(logits),
        accuracy=None if labels is None else class_accuracy(logits, labels.cpu()),
        images=len(images),
        reference=reference.name,
    )


def make_reference(
    images: Tensor,
    name: str,
    *,
    batch_size: int = 256,
    classifier: CifarClassifier | None = None,
) -> Reference:
    """Moments of a set of images, for comparing others with it.

    For example a teacher's samples, to ask how far a student is from its teacher instead of from
    the data.

    Args:
        images: (N, 3, 32, 32), floating point in [-1, 1], N at least 2.
        name: a few words that say which images these are; shown in every report.
        batch_size: images a forward pass.
        classifier: None is the shipped one.

    Raises:
        EvaluationInputError: as :func:`evaluate`.
    """
    check_images(images)
    classifier = _embedded_classifier(str(images.device)) if classifier is None else classifier
    moments = _measure(images, batch_size, classifier).moments
    return Reference(
        mean=moments.mean,
        covariance=moments.covariance,
        images=moments.count,
        name=name,
        classifier=fingerprint(classifier),
    )


def _measure(images: Tensor, batch_size: int, classifier: CifarClassifier) -> Measured:
    if batch_size < 1:
        raise EvaluationInputError(f"batch_size must be at least 1, got {batch_size}")
    return measure(torch.split(images, batch_size), classifier, keep_logits=True)


@lru_cache(maxsize=4)
def _embedded_classifier(device: str) -> CifarClassifier:
    """Read once a device; private, because a shared module must not be changed by a user."""
    return load_classifier().to(device)


@lru_cache(maxsize=1)
def _embedded_reference() -> Reference:
    return load_reference()
