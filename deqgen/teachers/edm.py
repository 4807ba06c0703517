"""EDM preconditioning and training loss (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Preconditioning:
    """The scalings that turn a raw network F into a denoiser D (EDM, Table 1 and equation 7).

    ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)``, so that the network's input and its
    training target have unit variance at every noise level. All arithmetic is float32.

    Attributes:
        c_skip: ``(B, 1, 1, 1)``; how much of the noisy image is kept.
        c_out: ``(B, 1, 1, 1)``; what the network's output is multiplied by.
        total: ``(B, 1, 1, 1)``; standard deviation of the noisy image, ``1 / c_in``.
        c_noise: ``(B,)``; ``ln(sigma) / 4``, the noise level as the network sees it.
    """

    c_skip: Tensor
    c_out: Tensor
    total: Tensor
    c_noise: Tensor

    @classmethod
    def at(cls, sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
        """The scalings at noise levels ``sigma`` (B,) for data of standard deviation sigma_data."""
        level = sigma.to(torch.float32).reshape(-1, 1, 1, 1)  # (B, 1, 1, 1)
        total = (level**2 + sigma_data**2).sqrt()
        c_noise = level.flatten().log() / 4
        return cls((sigma_data / total) ** 2, level * sigma_data / total, total, c_noise)

    def network_input(self, x: Tensor) -> Tensor:
        """``c_in x`` for noisy images ``(B, C, H, W)``."""
        return x.to(torch.float32) / self.total

    def denoised(self, x: Tensor, raw: Tensor) -> Tensor:
        """``D`` from noisy images and the network's output, ``(B, C, H, W)`` both."""
        return self.c_skip * x.to(torch.float32) + self.c_out * raw.to(torch.float32)


class EDMDenoiser(nn.Module):
    """A raw network under :class:`Preconditioning`.

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
        if label is None:
            label = torch.full(x.shape[:1], self.num_classes, device=x.device)
        at = Preconditioning.at(sigma, self.sigma_data)
        raw = self.network(at.network_input(x), at.c_noise, label)  # (B, C, H, W)
        return at.denoised(x, raw)

    def describe(self) -> dict[str, Any]:
        """What decides the estimates beside the network; the usual ``sigma_data`` is left out."""
        return {} if self.sigma_data == 0.5 else {"sigma_data": self.sigma_data}

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
