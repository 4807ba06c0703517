"""EVALUATION: how good are these images, measured offline.

images (N, 3, 32, 32) --round to 256 levels--> classifier --> features (N, 320), logits (N, 10)
features --mean and covariance--> distance to those of CIFAR-10's training images = ``fd_cifar10``
logits --> ``inception_style_score``, and with labels the accuracy of class-conditional samples.
The classifier is our own small one, shipped in ``deqgen/assets``: **no number here is FID**.
``evaluate(images, labels)`` is the one call; the rest are its parts, each usable alone.
"""

from deqgen.evaluation.classifier import CIFAR10_CLASSES, CifarClassifier, load_classifier
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.evaluator import Report, evaluate, make_reference
from deqgen.evaluation.features import FeatureNetwork, load_features
from deqgen.evaluation.frechet import (
    FeatureMoments,
    Reference,
    fingerprint,
    frechet_distance,
    load_reference,
    save_reference,
)
from deqgen.evaluation.scores import class_accuracy, inception_style_score
from deqgen.evaluation.statistics import (
    archive_reference,
    box_to_32,
    load_archive_reference,
    load_statistics,
    save_statistics,
)

__all__ = [
    "CIFAR10_CLASSES",
    "CifarClassifier",
    "EvaluationInputError",
    "FeatureMoments",
    "FeatureNetwork",
    "Reference",
    "Report",
    "archive_reference",
    "box_to_32",
    "class_accuracy",
    "evaluate",
    "fingerprint",
    "frechet_distance",
    "inception_style_score",
    "load_archive_reference",
    "load_classifier",
    "load_features",
    "load_reference",
    "load_statistics",
    "make_reference",
    "save_reference",
    "save_statistics",
]
