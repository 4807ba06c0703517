"""Denoisers whose ODE is solved by hand: Gaussian data, one mean a class."""

from __future__ import annotations

import torch
from torch import Tensor


class Gaussian:
    """Clean images ~ N(mean[label], std^2) a channel; the last mean is that of "no class"."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std  # (K + 1,), (C,)
        self.num_classes = len(mean) - 1

    def centre(self, x: Tensor, label: Tensor | None) -> Tensor:
        if label is None:
            label = torch.full((len(x),), self.num_classes)
        return self.mean.to(x.dtype)[label].reshape(-1, 1, 1, 1)

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        # The posterior mean of a Gaussian: a weighted mean of the data's mean and of what is seen.
        variance = self.std.to(x.dtype).square().reshape(1, -1, 1, 1)
        level = sigma.square().reshape(-1, 1, 1, 1)
        return (variance * x + level * self.centre(x, label)) / (variance + level)

    def solution(self, noise: Tensor, sigma_max: float, centre: Tensor) -> Tensor:
        """x at sigma = 0 of dx/dsigma = sigma (x - centre) / (std^2 + sigma^2)."""
        variance = self.std.to(noise.dtype).square().reshape(1, -1, 1, 1)
        shrink = (variance / (variance + sigma_max**2)).sqrt()
        return centre + (noise * sigma_max - centre) * shrink


def problem() -> Gaussian:
    """Three channels, two classes, float64."""
    mean = torch.tensor([0.5, -0.25, 0.1], dtype=torch.float64)
    return Gaussian(mean, torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64))


def noise(batch: int, shape: tuple[int, ...] = (3, 2, 2), seed: int = 0) -> Tensor:
    """Standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *shape), generator=generator, dtype=torch.float64)
