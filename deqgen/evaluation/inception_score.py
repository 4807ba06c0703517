"""Inception score with splits, as it is published.

Letters: N images, K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.scores import inception_style_score

SPLITS = 10


def inception_score(logits: Tensor, *, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation of ``exp(mean_i KL(p(y|x_i) || p(y)))`` over parts of the images.

    Salimans et al., "Improved Techniques for Training GANs", arXiv 1606.03498, section 4, and the
    habit of its authors: ten consecutive parts of the images in the order given, p(y) the mean over
    the part, and the standard deviation divided by ``splits``. So the order matters a little. On
    the Inception network's logits this is IS; on another network's it compares with nothing
    published. :func:`deqgen.evaluation.inception_style_score` is the same without parts.

    Args:
        logits: (N, K), before the softmax.
        splits: number of parts, at most N.

    Raises:
        EvaluationInputError: fewer images than parts, another shape, or a value that is not finite.
    """
    if splits < 1 or logits.ndim != 2 or len(logits) < splits:
        raise EvaluationInputError(
            f"an Inception score over {splits} parts needs logits (N, K) of as many images or "
            f"more, got {tuple(logits.shape)}"
        )
    ends = [part * len(logits) // splits for part in range(splits + 1)]
    scores = torch.tensor(
        [inception_style_score(logits[a:b]) for a, b in pairwise(ends)],
        dtype=torch.float64,
    )
    return float(scores.mean()), float(scores.std(correction=0))
