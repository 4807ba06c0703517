"""Churn: add fresh noise before each step, so that later steps can correct earlier mistakes.

Letters: B samples, C channels, H height, W width, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Raise the noise level before each step (EDM, arXiv 2206.00364, Algorithm 2).

    Between ``low`` and ``high`` the level goes up from sigma to ``(1 + gamma) sigma``, with
    ``gamma = min(amount / N, sqrt(2) - 1)``, and fresh noise makes up the difference. For 256 Heun
    steps on ImageNet-64 EDM takes ``Churn(amount=40, low=0.05, high=50, noise=1.003)``.

    Args:
        amount: S_churn, positive; how much of the noise is replaced over all steps together.
        low: S_min; no noise is added below this level.
        high: S_max; no noise is added above this level.
        noise: S_noise, the standard deviation of the fresh noise; a little above 1 makes up for
            denoisers that remove too much.

    Raises:
        ValueError: an amount or a noise that is not positive and finite, or ``low > high``.
    """

    amount: float
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise ValueError(
                f"the amount of churn must be positive and finite, got {self.amount}; "
                "churn=None is deterministic sampling"
            )
        if not 0 <= self.low <= self.high:
            raise ValueError(f"churn needs 0 <= low <= high, got {self.low} and {self.high}")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"the noise of churn must be positive and finite, got {self.noise}")

    def raised(self, sigma: float, steps: int) -> float:
        """The level from which the step that begins at ``sigma`` is taken, of N steps in all."""
        if not self.low <= sigma <= self.high:
            return sigma
        return sigma + min(self.amount / steps, math.sqrt(2) - 1) * sigma

    def add(
        self, x: Tensor, sigma: float, raised: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Take images from level ``sigma`` to ``raised``.

        As in EDM the noise is drawn where none is added too, so that what a generator gives to a
        step does not depend on ``low`` and ``high``.

        Args:
            x: noisy images, ``(B, C, H, W)`` float64.
            sigma: their level.
            raised: the level wanted, at least ``sigma``.
            generators: one on the CPU a sample; each gives ``(C, H, W)`` float64.

        Returns:
            Noisy images, ``(B, C, H, W)``.
        """
        fresh = torch.stack(
            [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators]
        )
        return x + math.sqrt(raised**2 - sigma**2) * self.noise * fresh.to(x.device)

    def describe(self) -> dict[str, Any]:
        """Options as plain data; ``high`` is left out where there is no upper end."""
        return {key: value for key, value in asdict(self).items() if value != math.inf}
