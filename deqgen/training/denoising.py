"""Train a diffusion model: remove noise of every level (EDM, arXiv 2206.00364)."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqgen.data.images import to_float
from deqgen.teachers.edm import edm_loss


class Denoising:
    """Noisy image and label in, clean image out.

    Args:
        images: uint8, ``(N, C, H, W)``.
        labels: int64, ``(N,)``.
        num_classes: the index that stands for "no class".
        label_dropout: share of the examples shown without their class, which classifier-free
            guidance needs (arXiv 2207.12598).
        flip: mirror half of the examples.
        device: where the model is.

    Raises:
        ValueError: a share outside [0, 1], or labels that do not fit the images or the classes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        label_dropout: float = 0.1,
        flip: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must lie in [0, 1], got {label_dropout}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images need as many labels, got {tuple(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}")
        self.images = images
        self.labels = labels
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.flip = flip
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.labels)

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        """Loss of a batch; ``generator`` draws flips, dropped labels, noise levels and noise."""
        chosen = torch.from_numpy(indices)
        image = to_float(self.images[chosen])  # (B, C, H, W)
        mirrored = torch.rand(len(chosen), generator=generator) < (0.5 if self.flip else 0.0)
        image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        dropped = torch.rand(len(chosen), generator=generator) < self.label_dropout
        label = torch.where(dropped, self.num_classes, self.labels[chosen])  # (B,)
        return edm_loss(model, image.to(self.device), label.to(self.device), generator)
