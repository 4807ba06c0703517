"""EVALUATION: how good are these images, and at what cost.

images --round to 256 levels--> feature network --> features (N, F), logits (N, K), in one pass
features --moments--> Frechet distance; --kept--> kernel distance, precision, recall, coverage
logits --> Inception score. Names say the network: ``fid`` is Inception's, ``fd_cifar10`` no FID.
``evaluate_model`` and ``evaluate_images`` give numbers with all that must be known to compare them;
``evaluate(images)`` is the short way, with the CIFAR-10 classifier that ``deqgen/assets`` holds.
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
from deqgen.evaluation.image_source import ImageSource, is_images, open_images
from deqgen.evaluation.inception_score import inception_score
from deqgen.evaluation.kernel import kernel_distance, squared_mmd
from deqgen.evaluation.label_policy import labels_for
from deqgen.evaluation.manifold import Manifold, ManifoldScores, manifold_scores
from deqgen.evaluation.measuring import Measured, measure
from deqgen.evaluation.metrics import METRICS, check_metrics
from deqgen.evaluation.model_evaluation import evaluate_images, evaluate_model
from deqgen.evaluation.provenance import Fingerprint
from deqgen.evaluation.references import open_reference
from deqgen.evaluation.result import Evaluation, FewSamplesWarning
from deqgen.evaluation.scores import class_accuracy, inception_style_score
from deqgen.evaluation.statistics import (
    archive_reference,
    box_to_32,
    load_archive_reference,
    load_statistics,
    save_statistics,
)
from deqgen.evaluation.sweep import Spread, SweepRow, sweep_model

__all__ = [
    "CIFAR10_CLASSES",
    "METRICS",
    "CifarClassifier",
    "Evaluation",
    "EvaluationInputError",
    "FeatureMoments",
    "FeatureNetwork",
    "FewSamplesWarning",
    "Fingerprint",
    "ImageSource",
    "Manifold",
    "ManifoldScores",
    "Measured",
    "Reference",
    "Report",
    "Spread",
    "SweepRow",
    "archive_reference",
    "box_to_32",
    "check_metrics",
    "class_accuracy",
    "evaluate",
    "evaluate_images",
    "evaluate_model",
    "fingerprint",
    "frechet_distance",
    "inception_score",
    "inception_style_score",
    "is_images",
    "kernel_distance",
    "labels_for",
    "load_archive_reference",
    "load_classifier",
    "load_features",
    "load_reference",
    "load_statistics",
    "make_reference",
    "manifold_scores",
    "measure",
    "open_images",
    "open_reference",
    "save_reference",
    "save_statistics",
    "squared_mmd",
    "sweep_model",
]
