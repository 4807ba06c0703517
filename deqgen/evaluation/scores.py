"""Scores that need only the classifier's opinion of each image.

Letters: N images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqgen.evaluation.errors import EvaluationInputError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def inception_style_score(logits: Tensor) -> float:
    """``exp(mean_i KL(p(y|x_i) || p(y)))`` on the shipped classifier's probabilities.

    The formula of the Inception score (Salimans et al., arXiv 1606.03498, section 4), over all
    images at once, without splits. It is **not** the Inception score: the classifier is not the
    Inception network, so published numbers do not compare. It lies between 1 (every image looks
    the same to the classifier) and K (every image certain, all classes equally often). The mean
    over few images is biased downwards: compare equal numbers of images only.

    Args:
        logits: (N, K), before the softmax; N at least 1.

    Raises:
        EvaluationInputError: no images, another shape, or a logit that is not finite.
    """
    _check_logits(logits)
    log_p = logits.detach().to("cpu", torch.float64).log_softmax(dim=1)
    log_marginal = torch.logsumexp(log_p, dim=0) - torch.tensor(len(log_p)).double().log()
    divergence = (log_p.exp() * (log_p - log_marginal)).sum(dim=1)
    return float(divergence.mean().exp())


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images that the classifier puts into the class they were asked to show.

    For samples of a class-conditional generator. Real test images reach the classifier's own test
    accuracy (see its model card), not 1.

    Args:
        logits: (N, K).
        labels: (N,), integers from 0 to K - 1.

    Raises:
        EvaluationInputError: shapes that do not agree, or a label out of range.
    """
    _check_logits(logits)
    check_labels(labels, *logits.shape)
    return float((logits.argmax(dim=1) == labels.to(logits.device)).double().mean())


def check_labels(labels: Tensor, count: int, num_classes: int) -> None:
    """Refuse what is not one class number an image, in one sentence."""
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise EvaluationInputError(f"labels must be a tensor of integers, got {kind}")
    if tuple(labels.shape) != (count,):
        raise EvaluationInputError(
            f"labels must be ({count},), one an image, got {tuple(labels.shape)}"
        )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise EvaluationInputError(
            f"labels must lie between 0 and {num_classes - 1}, got {int(outside[0])}"
        )


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or len(logits) == 0:
        raise EvaluationInputError(
            f"logits must be (N, K) with at least one row, got {tuple(logits.shape)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationInputError("logits must be finite")
