"""Precision and recall, density and coverage: do the images lie where the real ones lie?

Around every feature vector lies a ball that reaches to its k-th nearest neighbour in its own set;
a set's balls together stand for its manifold.

Kynkäänniemi et al., arXiv 1904.06991, equations 1 and 2: precision is the share of images inside
some ball of the reference, recall the share of the reference inside some ball of the images (k=3).
Naeem et al., arXiv 2002.09797, equations 3 and 4: density is the number of reference balls that an
image lies in, averaged and divided by k, coverage the share of reference balls that hold an image
(k=5).

Letters: N images, M reference images, F features, B rows of a block, C columns of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deqgen.evaluation.kernel import check_features

PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5

_ROWS, _COLUMNS = 1024, 8192  # a block of distances: 64 MiB of float64
_ROUNDING = 1e-12  # of |x|^2 + |y|^2: closer than that is the same point


@dataclass(frozen=True)
class Manifold:
    """Feature vectors and the squared radii of their balls.

    Attributes:
        features: (N, F).
        precision_radii: (N,) float64, squared distances to the third nearest neighbours.
        density_radii: (N,) float64, to the fifth.
    """

    features: Tensor
    precision_radii: Tensor
    density_radii: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Manifold:
        """Measure the radii, in blocks of distances.

        Raises:
            EvaluationInputError: another shape, fewer than six vectors, or one that is not finite.
        """
        check_features(features, features, DENSITY_NEIGHBOURS + 1)
        nearest = _nearest(features, DENSITY_NEIGHBOURS)  # (N, 5), rising
        third, fifth = nearest[:, PRECISION_NEIGHBOURS - 1], nearest[:, DENSITY_NEIGHBOURS - 1]
        return cls(features, third.contiguous(), fifth.contiguous())


@dataclass(frozen=True)
class ManifoldScores:
    """Four numbers about two sets; all but ``density`` lie between 0 and 1, and 1 is best.

    Attributes:
        precision: share of images inside the reference's manifold: quality.
        recall: share of the reference inside the images' manifold: diversity.
        density: like precision, and a crowded place counts more than an outlier's large ball; it
            may exceed 1.
        coverage: like recall, measured with the reference's balls alone.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_scores(images: Manifold, reference: Manifold) -> ManifoldScores:
    """Compare two sets, in one pass over blocks of their distances.

    Args:
        images: of N images.
        reference: of M reference images, on the same device.

    Raises:
        EvaluationInputError: feature vectors of different lengths.
    """
    fake, real = images.features, reference.features
    check_features(fake, real)
    inside = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)  # of a reference ball
    balls = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)  # by an image's ball
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, columns, squared in _distances(real, fake):  # (B, C)
        inside[columns] |= (squared <= reference.precision_radii[rows, None]).any(dim=0)
        reached[rows] |= (squared <= images.precision_radii[columns]).any(dim=1)
        within = squared <= reference.density_radii[rows, None]
        balls[columns] += within.sum(dim=0)
        covered[rows] |= within.any(dim=1)
    return ManifoldScores(
        precision=_share(inside),
        recall=_share(reached),
        density=int(balls.sum()) / (DENSITY_NEIGHBOURS * len(fake)),
        coverage=_share(covered),
    )


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


def _nearest(x: Tensor, count: int) -> Tensor:
    """(N, count) squared distances to the nearest other vectors, rising."""
    nearest = torch.full((len(x), count), torch.inf, dtype=torch.float64, device=x.device)
    for rows, columns, squared in _distances(x, x):
        own = torch.arange(len(x), device=x.device)
        squared[own[rows, None] == own[columns]] = torch.inf
        candidates = torch.cat([nearest[rows], squared], dim=1)  # (B, count + C)
        nearest[rows] = candidates.topk(count, dim=1, largest=False).values
    return nearest


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances (B, C) between rows of x and of y, block by block, in float64.

    ``|x|^2 + |y|^2 - 2 x.y`` leaves a difference of rounding between equal vectors. A generator
    that repeats itself has many, and balls of radius 0, so what is below rounding becomes 0.
    """
    for row in range(0, len(x), _ROWS):
        rows = slice(row, min(row + _ROWS, len(x)))
        left = x[rows].double()  # (B, F)
        left_norms = left.square().sum(dim=1, keepdim=True)  # (B, 1)
        for column in range(0, len(y), _COLUMNS):
            columns = slice(column, min(column + _COLUMNS, len(y)))
            right = y[columns].double()  # (C, F)
            norms = left_norms + right.square().sum(dim=1)  # (B, C)
            squared = torch.addmm(norms, left, right.T, alpha=-2)  # (B, C)
            squared[squared <= _ROUNDING * norms] = 0
            yield rows, columns, squared
