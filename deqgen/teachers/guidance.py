"""Classifier-free guidance: exaggerate what the class changes.

Letters: B samples, G guided samples, C channels, H height, W width.
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
        TypeError: a scale that is no number.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float):
            raise TypeError(f"the guidance scale must be a number, got {self.scale!r}")
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
        self,
        denoiser: Denoiser,
        x: Tensor,
        sigma: Tensor,
        label: Tensor,
        null_label: int,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Guided estimate, from one call on the batch and its guided rows once more.

        Args:
            denoiser: takes ``null_label`` for "no class".
            x: noisy images, ``(B, C, H, W)``.
            sigma: noise levels, ``(B,)``.
            label: classes, ``(B,)``.
            null_label: the label that means "no class".
            rows: which rows to guide, ``(G,)`` int64; all by default. The others get the
                conditional estimate.

        Returns:
            Clean images, ``(B, C, H, W)``, in the dtype of the denoiser's result.
        """
        again = [x, sigma] if rows is None else [x[rows], sigma[rows]]
        null = label.new_full((len(again[0]),), null_label)  # (G,)
        both = denoiser(
            torch.cat([x, again[0]]), torch.cat([sigma, again[1]]), torch.cat([label, null])
        )
        conditional, unconditional = both[: len(x)], both[len(x) :]  # (B, C, H, W), (G, C, H, W)
        given = conditional if rows is None else conditional[rows]  # (G, C, H, W)
        guided = unconditional + self.scale * (given - unconditional)  # (G, C, H, W)
        return guided if rows is None else conditional.index_copy(0, rows, guided)

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
