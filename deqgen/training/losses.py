"""Losses over the trajectory of an equilibrium model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "huber": F.huber_loss,
}


class TrajectoryLoss(nn.Module):
    """Supervise every decoded state, the later the more.

    ``sum_k decay^(K-1-k) distance(x_k, x)`` over the K images of a trajectory, with a distance that
    is a mean over all pixels (GET, arXiv 2401.08639; published: ``decay`` 0.8, L1, K = 6). For a
    model without an equilibrium, K is 1 and this is the distance itself.

    Args:
        decay: weight of a state relative to the next one, in (0, 1].
        distance: ``"l1"``, ``"l2"`` or ``"huber"``.

    Raises:
        ValueError: a decay outside (0, 1], or an unknown distance.
    """

    def __init__(self, decay: float = 0.8, distance: Literal["l1", "l2", "huber"] = "l1") -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {decay}")
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        self.decay = decay
        self.distance = distance

    def total_weight(self, count: int) -> float:
        """Sum of the weights of ``count`` images; a loss divided by it is a mean distance."""
        return math.fsum(self.decay**k for k in range(count))

    def forward(self, images: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss, a float32 scalar.

        Args:
            images: K tensors ``(B, C, H, W)``, first state first.
            target: ``(B, C, H, W)``.

        Raises:
            ValueError: no images, or one of another shape than ``target`` (which would broadcast).
        """
        if not images:
            raise ValueError("a trajectory loss needs at least one image")
        distance = DISTANCES[self.distance]
        target = target.float()
        total = target.new_zeros(())
        for image in images:
            if image.shape != target.shape:
                raise ValueError(
                    f"image and target differ in shape: {tuple(image.shape)}, {tuple(target.shape)}"
                )
            total = self.decay * total + distance(image.float(), target)  # Horner's scheme
        return total
