"""The Frechet distance between two Gaussians, and the moments it needs, in float64.

Letters: N images, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.manifold import Manifold
from deqgen.evaluation.moments_check import checked_moments

NOT_STATED = "not stated"


class FeatureMoments:
    """Mean and unbiased covariance of feature vectors that arrive in batches.

    Batches are merged by the update of Chan, Golub and LeVeque (1979), which subtracts means before
    squaring; the result does not depend on the batch size beyond float64 rounding. A batch costs
    one float64 matrix product, where the features are (on the CPU for a device without float64).

    Args:
        num_features: length F of a feature vector.
    """

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self._mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (B, F); any float type, any device, B may be 0."""
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise EvaluationInputError(
                f"features must be (B, {len(self._mean)}), got {tuple(features.shape)}"
            )
        if len(features) == 0:
            return
        self._move(features.device if features.is_cuda else torch.device("cpu"))
        batch = features.detach().to(self._mean.device, torch.float64)
        mean = batch.mean(dim=0)
        shift, weight = self._merge_means(len(batch), mean)
        # The distance between the means is one more row, so that one product adds both terms.
        rows = torch.cat([batch - mean, weight**0.5 * shift[None]])  # (B + 1, F)
        self._scatter.addmm_(rows.T, rows)

    def merge(self, other: FeatureMoments) -> None:
        """Add all that ``other`` has seen, in another process for instance.

        Raises:
            EvaluationInputError: vectors of another length.
        """
        if len(other._mean) != len(self._mean):
            raise EvaluationInputError(
                f"moments of {len(self._mean)} features cannot be merged with moments of "
                f"{len(other._mean)}"
            )
        if other.count == 0:
            return
        place = self._mean.device
        shift, weight = self._merge_means(other.count, other._mean.to(place))
        self._scatter += other._scatter.to(place)
        self._scatter.addr_(shift, shift, alpha=weight)

    def state(self) -> dict[str, Tensor | int]:
        """Count, mean (F,) and scatter (F, F) on the CPU, for :meth:`from_state` elsewhere."""
        return {"count": self.count, "mean": self.mean, "scatter": self._scatter.cpu()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FeatureMoments:
        """What :meth:`state` told."""
        moments = cls(len(state["mean"]))
        moments.count = int(state["count"])
        moments._mean, moments._scatter = state["mean"].clone(), state["scatter"].clone()
        return moments

    @property
    def mean(self) -> Tensor:
        """Mean (F,), float64 on the CPU."""
        return self._mean.cpu()

    @property
    def device(self) -> torch.device:
        """Where the sums are: where the features were, if that is the CPU or a CUDA GPU."""
        return self._mean.device

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (F, F), divided by N - 1, on the CPU; needs two vectors or more."""
        if self.count < 2:
            raise EvaluationInputError(f"a covariance needs at least 2 images, got {self.count}")
        scatter = self._scatter.cpu()
        # A matrix product of X.T and X need not be symmetric to the last bit; a covariance is.
        return (scatter + scatter.T) / (2 * (self.count - 1))

    def _merge_means(self, count: int, mean: Tensor) -> tuple[Tensor, float]:
        """Count ``count`` vectors of this mean; return how far it was off, and its weight."""
        total = self.count + count
        shift = mean - self._mean
        weight = self.count * count / total
        self._mean = self._mean + shift * (count / total)
        self.count = total
        return shift, weight

    def _move(self, device: torch.device) -> None:
        if self._mean.device != device:
            self._mean, self._scatter = self._mean.to(device), self._scatter.to(device)


def fingerprint(classifier: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of the weights as float32, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(classifier.state_dict().items()):
        if value.is_floating_point():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson and Landau, 1982; as a score of
    generators, Heusel et al., arXiv 1706.08500, eq. 6). The trace of the root is that of the
    symmetric ``S C2 S`` with ``S = C1^(1/2)``, so two symmetric eigenvalue problems suffice;
    eigenvalues that rounding made negative count as zero. Computed in float64 on the CPU.

    Args:
        mean1: (F,).
        cov1: (F, F), symmetric positive semi-definite; need not be invertible.
        mean2: (F,).
        cov2: (F, F).

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        EvaluationInputError: shapes that do not agree, or values that are not finite.

    Example:
        >>> mean, cov = torch.zeros(2), torch.eye(2)
        >>> frechet_distance(mean, cov, mean + 3, cov)
        18.0
    """
    size = mean1.shape[0] if mean1.ndim == 1 else -1
    shapes = [tuple(item.shape) for item in (mean1, cov1, mean2, cov2)]
    if shapes != [(size,), (size, size)] * 2:
        raise EvaluationInputError(f"expected shapes (F,), (F, F), (F,), (F, F), got {shapes}")
    m1, c1, m2, c2 = (item.detach().to("cpu", torch.float64) for item in (mean1, cov1, mean2, cov2))
    if not all(bool(torch.isfinite(item).all()) for item in (m1, c1, m2, c2)):
        raise EvaluationInputError("means and covariances must be finite")
    values, vectors = torch.linalg.eigh(c1)
    half = vectors * values.clamp_min(0).sqrt()  # half @ vectors.T is C1^(1/2)
    # Q D^(1/2) alone is enough: it differs from the symmetric root by a rotation, which leaves the
    # eigenvalues of half.T C2 half unchanged.
    cross = torch.linalg.eigvalsh(half.T @ c2 @ half).clamp_min(0).sqrt().sum()
    distance = (m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross
    return max(0.0, float(distance))


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: feature moments of a set of real images.

    Attributes:
        mean: (F,), float64.
        covariance: (F, F), float64, unbiased.
        images: how many images they were computed from; 0 where the file does not say.
        name: which images these were.
        classifier: fingerprint of the weights that computed the features; ``NOT_STATED`` where
            the file does not say.
        split: which part of a data set they are, such as ``"train"``; ``NOT_STATED`` if unknown.
        features: (N, F) float32, the feature vectors themselves, for metrics that moments are not
            enough for; None where they were not kept.
    """

    mean: Tensor
    covariance: Tensor
    images: int
    name: str
    classifier: str
    split: str = NOT_STATED
    features: Tensor | None = field(default=None, repr=False)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of mean and covariance."""
        digest = hashlib.sha256()
        for moment in (self.mean, self.covariance):
            digest.update(moment.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def manifold(self) -> Manifold:
        """The feature vectors with the radii around them, measured once; needs ``features``."""
        if self.features is None:
            raise EvaluationInputError(
                f"the reference ({self.name}) holds moments only, and no feature vectors"
            )
        return Manifold.of(self.features)


def load_reference(path: str | Path | None = None) -> Reference:
    """The shipped moments of the CIFAR-10 training images, or those in a file.

    Raises:
        EvaluationInputError: there is no such file, it is not a reference, or no Gaussian has its
            moments.
    """
    if path is None:
        with as_file(files("deqgen") / "assets" / "cifar10_reference.safetensors") as embedded:
            return replace(load_reference(embedded), split="train")
    if not Path(path).is_file():
        raise EvaluationInputError(f"there is no reference file at {path}")
    try:
        with safe_open(str(path), framework="pt") as stored:
            notes = stored.metadata() or {}
            mean, covariance = checked_moments(
                stored.get_tensor("mean"), stored.get_tensor("covariance"), path
            )
            return Reference(
                mean=mean,
                covariance=covariance,
                images=int(notes["images"]),
                name=notes["name"],
                classifier=notes["classifier"],
                split=notes.get("split", NOT_STATED),
            )
    except EvaluationInputError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise EvaluationInputError(
            f"{path} is not a reference (mean, covariance; metadata images, name, classifier): "
            f"{error}"
        ) from None


def save_reference(reference: Reference, path: str | Path) -> None:
    """Write a reference that :func:`load_reference` reads back exactly."""
    save_file(
        {"mean": reference.mean.contiguous(), "covariance": reference.covariance.contiguous()},
        str(path),
        metadata={
            "images": str(reference.images),
            "name": reference.name,
            "classifier": reference.classifier,
            "split": reference.split,
        },
    )
