"""Classifier-free guidance: exaggerate what the class changes.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqgen.teachers.protocol import Denoiser


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Extrapolate from the unconditional to the conditional estimate (arXiv 2207.12598).

    ``D_w = D_uncond + scale * (D_cond - D_uncond)``. A guided evaluation runs the network on both
    and counts as two.

    Args:
        scale: 1 is the conditional model itself, at the cost of one evaluation; larger is clearer
            and less varied.
        interval: guide only where ``low < sigma <= high``, and elsewhere run the conditional
            network alone, at the cost of one evaluation (Kynkaanniemi et al. 2024, arXiv
            2404.07724, section 3). ``None`` guides everywhere.

    Raises:
        ValueError: a scale that is not finite or not positive, or an interval that is empty.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the guidance scale must be positive and finite, got {self.scale}")
        if self.interval is not None:
            low, high = (float(end) for end in self.interval)
            if not 0 <= low < high:
                raise ValueError(f"a guidance interval needs 0 <= low < high, got {self.interval}")
            object.__setattr__(self, "interval", (low, high))

    def active(self, sigma: float) -> bool:
        """Whether both estimates are needed at noise level ``sigma``."""
        if self.scale == 1:
            return False
        return self.interval is None or self.interval[0] < sigma <= self.interval[1]

    def denoise(
        self, denoiser: Denoiser, x: Tensor, sigma: Tensor, label: Tensor, null_label: int
    ) -> Tensor:
        """Guided estimate, from one call on a doubled batch.

        Args:
            denoiser: takes ``null_label`` for "no class".
            x: noisy images, ``(B, C, H, W)``.
            sigma: noise levels, ``(B,)``.
            label: classes, ``(B,)``.
            null_label: the label that means "no class".

        Returns:
            Clean images, ``(B, C, H, W)``, in the dtype of the denoiser's result.
        """
        null = torch.full_like(label, null_label)  # (B,)
        both = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([label, null]))
        conditional, unconditional = both.chunk(2)  # each (B, C, H, W)
        return unconditional + self.scale * (conditional - unconditional)

    def describe(self) -> dict[str, Any]:
        """Options as plain data."""
        return {"scale": self.scale, "interval": list(self.interval) if self.interval else None}


def null_label_of(denoiser: Denoiser) -> int:
    """The label that means "no class" to this denoiser, its number of classes.

    Raises:
        TypeError: the denoiser does not say how many classes it has.
    """
    classes = getattr(denoiser, "num_classes", None)
    if classes is None:
        raise TypeError(
            "guidance needs a denoiser with an attribute num_classes, the label that means "
            f'"no class"; {type(denoiser).__name__} has none'
        )
    return int(classes)
