"""EDM preconditioning and training loss (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EDMDenoiser(nn.Module):
    """Turn a raw network F into a denoiser D (EDM, Table 1 and equation 7).

    ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)``, so that the network's input and its
    training target have unit variance at every noise level.

    Args:
        network: ``(x, c_noise, label) -> F`` with a ``config`` that has ``num_classes``.
        sigma_data: standard deviation of the data.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x: noisy images, ``(B, C, H, W)``.
            sigma: their noise levels, ``(B,)``, positive.
            label: classes, ``(B,)`` int64; ``None`` or the index ``num_classes`` is "no class".

        Returns:
            Clean images, float32, ``(B, C, H, W)``.
        """
        x = x.to(torch.float32)
        if label is None:
            label = torch.full(x.shape[:1], self.num_classes, device=x.device)
        level = sigma.to(torch.float32).reshape(-1, 1, 1, 1)  # (B, 1, 1, 1)
        total = (level**2 + self.sigma_data**2).sqrt()
        c_skip = (self.sigma_data / total) ** 2
        c_out = level * self.sigma_data / total
        c_noise = level.flatten().log() / 4
        raw: Tensor = self.network(x / total, c_noise, label)
        return c_skip * x + c_out * raw.to(torch.float32)

    @property
    def num_classes(self) -> int:
        """Classes of the network; the index ``num_classes`` stands for "no class"."""
        return int(self.network.config.num_classes)  # type: ignore[union-attr, arg-type]


def edm_loss(
    denoiser: nn.Module,
    images: Tensor,
    label: Tensor,
    generator: torch.Generator,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    sigma_data: float = 0.5,
) -> Tensor:
    """Weighted denoising error, a scalar (EDM, Table 1: ``lambda(sigma) = 1 / c_out^2``).

    Args:
        denoiser: ``(x, sigma, label) -> x0``.
        images: clean images in [-1, 1], ``(B, C, H, W)``.
        label: ``(B,)`` int64.
        generator: draws the noise levels (log-normal with ``mean`` and ``std``), then the noise.
    """
    normal = torch.randn(len(images), generator=generator, device=generator.device)
    noise = torch.randn(images.shape, generator=generator, device=generator.device)
    sigma = (normal * std + mean).exp().to(images.device)  # (B,)
    level = sigma.reshape(-1, 1, 1, 1)
    clean = denoiser(images + level * noise.to(images.device), sigma, label)  # (B, C, H, W)
    weight = (level**2 + sigma_data**2) / (level * sigma_data) ** 2
    loss: Tensor = (weight * (clean - images) ** 2).mean()
    return loss
