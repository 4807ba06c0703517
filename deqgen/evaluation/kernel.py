"""Kernel distance: the squared maximum mean discrepancy with a cubic kernel (KID).

Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", arXiv 1801.01401: with
``k(x, y) = (x.y / F + 1)^3`` and the unbiased estimator of its section 4. On Inception features it
is KID.

Letters: N images, M reference images, F features, B rows of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqgen.evaluation.errors import EvaluationInputError

_BLOCK = 2048  # rows of a kernel matrix held at a time


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation of :func:`squared_mmd` over random subsets.

    As KID is published: each subset draws ``subset_size`` of the images and as many of the
    reference, without replacement, from a generator of its own. The mean estimates the same
    quantity as ``squared_mmd`` of everything, whatever the size of the subsets, and is not biased
    by few images as the Frechet distance is; the standard deviation (over the subsets, divided by
    their number) is that of one subset's estimate, not of the mean.

    Args:
        features: (N, F).
        reference: (M, F).
        subsets: how many.
        subset_size: of each, at most N and M.
        seed: of the draws.

    Raises:
        EvaluationInputError: subsets larger than a set or smaller than 2, none, or features that
            do not fit.
    """
    check_features(features, reference)
    most = min(len(features), len(reference))
    if not 2 <= subset_size <= most or subsets < 1:
        raise EvaluationInputError(
            f"{subsets} subsets of {subset_size} cannot be drawn: there must be 1 or more, of "
            f"2 to {most} images here"
        )
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [
            squared_mmd(
                features[_draw(len(features), subset_size, generator).to(features.device)],
                reference[_draw(len(reference), subset_size, generator).to(reference.device)],
            )
            for _ in range(subsets)
        ],
        dtype=torch.float64,
    )
    return float(found.mean()), float(found.std(correction=0))


def squared_mmd(features: Tensor, reference: Tensor) -> float:
    """Unbiased estimate of the squared MMD from all pairs of rows, in float64.

    ``sum_{i != j} k(x_i, x_j) / (N (N - 1)) + sum_{i != j} k(y_i, y_j) / (M (M - 1))
    - 2 sum_{ij} k(x_i, y_j) / (N M)``. It may be negative: around 0 it lies on both sides.

    Args:
        features: (N, F), N at least 2; any float type, any device.
        reference: (M, F), M at least 2, on the same device.

    Raises:
        EvaluationInputError: fewer rows, other shapes, or values that are not finite.
    """
    check_features(features, reference)
    x, y = features.double(), reference.double()
    within = _kernel_sum(x, None) / (len(x) * (len(x) - 1))
    within = within + _kernel_sum(y, None) / (len(y) * (len(y) - 1))
    return float(within - 2 * _kernel_sum(x, y) / (len(x) * len(y)))


def check_features(features: Tensor, reference: Tensor, fewest: int = 2) -> None:
    """Refuse what is not two sets of finite feature vectors of one length, in one sentence.

    Raises:
        EvaluationInputError: other shapes, fewer than ``fewest`` rows, or values that are not
            finite.
    """
    shapes = tuple(features.shape), tuple(reference.shape)
    if features.ndim != 2 or reference.ndim != 2 or shapes[0][1] != shapes[1][1]:
        raise EvaluationInputError(
            f"features and reference must be (N, F) and (M, F), got {shapes[0]} and {shapes[1]}"
        )
    if min(len(features), len(reference)) < fewest:
        raise EvaluationInputError(
            f"at least {fewest} images and {fewest} reference images are needed, "
            f"got {len(features)} and {len(reference)}"
        )
    if not bool(torch.isfinite(features).all() and torch.isfinite(reference).all()):
        raise EvaluationInputError("features must be finite")


def _kernel_sum(x: Tensor, y: Tensor | None) -> Tensor:
    """Sum of k over all pairs of rows; ``y`` None: over those of x with another row of x."""
    other = x if y is None else y
    total = x.new_zeros(())
    for block in torch.split(x, _BLOCK):
        total = total + _cubed(block @ other.T / x.shape[1]).sum()
    if y is None:
        total = total - _cubed(x.square().sum(dim=1) / x.shape[1]).sum()
    return total


def _cubed(products: Tensor) -> Tensor:
    return products.add_(1).pow_(3)


def _draw(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(size,) different numbers below ``count``."""
    return torch.randperm(count, generator=generator)[:size]
