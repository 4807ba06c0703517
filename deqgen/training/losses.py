"""Losses over the trajectory of an equilibrium model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, cast

from torch import Tensor, nn
from torch.nn import functional as F

from deqgen_solvers.errors import nearest

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Image and target ``(B, C, H, W)`` to a scalar, a mean over the batch."""

DISTANCES: dict[str, Distance] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "huber": F.huber_loss,
}

WEIGHTS: dict[str, Callable[[int, float], list[float]]] = {
    "geometric": lambda count, decay: [decay ** (count - 1 - k) for k in range(count)],
    "linear": lambda count, _: [(k + 1) / count for k in range(count)],
    "uniform": lambda count, _: [1.0] * count,
    "last": lambda count, _: [float(k == count - 1) for k in range(count)],
}
"""Weights of ``count`` states, first state first; the last one counts 1 in each scheme."""

_PUBLISHED_DECAY = 0.8


class TrajectoryLoss(nn.Module):
    """Supervise the decoded states, by default the later the more.

    ``sum_k w_k distance(x_k, x)`` over the K images of a trajectory, with a distance that is a mean
    over all pixels. Published: ``w_k = decay^(K-1-k)`` with ``decay`` 0.8, L1, K = 6 (GET, arXiv
    2401.08639). For a model without an equilibrium, K is 1 and this is the distance itself.

    Args:
        decay: of geometric weights: weight of a state relative to the next one, in (0, 1].
        distance: ``"l1"``, ``"l2"`` or ``"huber"``; or a function of image and target whose value
            is a mean over the batch, such as
            :class:`deqgen.training.PerceptualDistance`. If it has a method
            ``against(target)`` that returns a function of the image, that one is called, once.
        weights: ``"geometric"``; ``"linear"``, (k+1)/K; ``"uniform"``; ``"last"``, which supervises
            nothing but the answer, as for an estimator that returns one state; or K numbers, first
            state first. States of weight zero are not looked at.

    Raises:
        ValueError: a decay outside (0, 1] or of weights that have none, an unknown distance or
            name of weights, numbers that are negative, not finite, or all zero.
        TypeError: a distance that is neither a name nor a function.
    """

    def __init__(
        self,
        decay: float = _PUBLISHED_DECAY,
        distance: Literal["l1", "l2", "huber"] | Distance = "l1",
        weights: Literal["geometric", "linear", "uniform", "last"] | Sequence[float] = "geometric",
    ) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {decay}")
        _check_distance(distance)
        self.weights = _checked(weights)
        if self.weights != "geometric" and decay != _PUBLISHED_DECAY:
            raise ValueError(f"decay={decay} belongs to weights='geometric', not to {weights!r}")
        self.decay = decay
        self.distance = distance

    def weights_of(self, count: int) -> tuple[float, ...]:
        """The weights of ``count`` images, first state first.

        Raises:
            ValueError: if the weights were given as numbers, and not as many.
        """
        if isinstance(self.weights, str):
            return tuple(WEIGHTS[self.weights](count, self.decay))
        if len(self.weights) != count:
            raise ValueError(
                f"there are {len(self.weights)} weights for {count} images; give one an image, "
                "or a name, which fits any number"
            )
        return self.weights

    def total_weight(self, count: int) -> float:
        """Sum of the weights of ``count`` images; a loss divided by it is a mean distance."""
        return math.fsum(self.weights_of(count))

    def forward(self, images: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss, a float32 scalar.

        Args:
            images: K tensors ``(B, C, H, W)``, first state first.
            target: ``(B, C, H, W)``.

        Raises:
            ValueError: no images, one of another shape than ``target`` (which would broadcast), or
                another number of them than of weights.
        """
        if not images:
            raise ValueError("a trajectory loss needs at least one image")
        for image in images:
            if image.shape != target.shape:
                raise ValueError(
                    f"image and target differ in shape: {tuple(image.shape)}, {tuple(target.shape)}"
                )
        target = target.float()
        distance = self._against(target)
        total = target.new_zeros(())
        geometric = self.weights == "geometric"
        for image, weight in zip(images, self.weights_of(len(images)), strict=True):
            if geometric:  # Horner's scheme, whose rounding the recorded losses have
                total = self.decay * total + distance(image.float())
            elif weight:  # else a NaN in a state that does not count would count
                total = total + weight * distance(image.float())
        if total.ndim:
            raise ValueError(
                "a distance must be a mean over the batch, a scalar; this one returned shape "
                f"{tuple(total.shape)}"
            )
        return total

    def _against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance from this target, as a function of the image."""
        distance = DISTANCES[self.distance] if isinstance(self.distance, str) else self.distance
        prepared = getattr(distance, "against", None)
        if prepared is not None:
            return cast("Callable[[Tensor], Tensor]", prepared(target))
        return lambda image: distance(image, target)


def _check_distance(distance: object) -> None:
    if isinstance(distance, str):
        if distance in ("lpips", "dists"):
            raise ValueError(
                f"{distance} needs weights: give distance=PerceptualDistance({distance!r}, path) "
                "of deqgen.training"
            )
        if distance not in DISTANCES:
            raise ValueError(
                f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}."
                f"{nearest(distance, DISTANCES)}"
            )
    elif not callable(distance):
        raise TypeError(
            f"distance must be one of {', '.join(DISTANCES)}, or a function of image and target, "
            f"got {distance!r}"
        )


def _checked(weights: str | Sequence[float]) -> str | tuple[float, ...]:
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise ValueError(
                f"weights must be one of {', '.join(WEIGHTS)}, or numbers, got {weights!r}."
                f"{nearest(weights, WEIGHTS)}"
            )
        return weights
    numbers = tuple(float(weight) for weight in weights)
    if not all(math.isfinite(n) and n >= 0 for n in numbers) or not any(numbers):
        raise ValueError(
            f"weights must be finite, not negative, and not all zero, got {list(numbers)}"
        )
    return numbers
