"""A model that takes noise levels, seen as a diffusion model.

Letters: B samples, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deqgen.models.protocol import GenerativeModel
from deqgen.models.registry import create_model
from deqgen.teachers.registry import register_architecture


class ModelDenoiser(nn.Module):
    """A :class:`~deqgen.teachers.Denoiser` from a model that was built with ``noise_level=True``.

    So a GET or a DEQ-UNet can be trained as a diffusion model (:class:`~deqgen.training.Denoising`)
    and sampled, saved and distilled like any other (:class:`~deqgen.teachers.Teacher`). The
    preconditioning is EDM's; the model does it itself. Every estimate starts from the model's
    recorded z0, so it is a function of its inputs alone.

    Args:
        network: the model.

    Raises:
        TypeError: something that is no model.
        ValueError: a model without noise levels.

    Example:
        >>> model = create_model("GET-T/2", num_classes=10, noise_level=True)
        >>> teacher = Teacher(ModelDenoiser(model), image_shape=(3, 32, 32), num_classes=10)
    """

    network: GenerativeModel

    def __init__(self, network: GenerativeModel) -> None:
        super().__init__()
        if not isinstance(network, GenerativeModel):
            raise TypeError(f"ModelDenoiser needs a model, got {type(network).__name__}.")
        if not network.takes_noise_level:
            raise ValueError(
                f"this {network.architecture} takes no noise level, so it is no denoiser; build a "
                "GET or DEQ-UNet with noise_level=True."
            )
        self.network = network

    @property
    def num_classes(self) -> int:
        """Classes of the model, 0 if it is unconditional; the index itself means "no class"."""
        return self.network.config.num_classes or 0

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Estimate the clean image.

        Args:
            x: noisy images, ``(B, C, H, W)``.
            sigma: their noise levels, ``(B,)``, positive.
            label: classes, ``(B,)`` int64; ``None`` or the index ``num_classes`` is "no class".

        Returns:
            Clean images, float32, ``(B, C, H, W)``.

        Raises:
            ValueError, TypeError: inputs that do not fit the model.
        """
        if label is None and self.num_classes:
            label = torch.full(x.shape[:1], self.num_classes, device=x.device)  # (B,)
        image: Tensor = self.network(x, label, sigma=sigma).image  # (B, C, H, W)
        return image

    def teacher_header(self) -> dict[str, Any]:
        """What a teacher's file must say to build this denoiser again."""
        config = self.network.config
        return {
            "architecture": self.network.architecture,
            "config": config.to_dict(),
            "image_shape": list(config.image_shape),
            "num_classes": self.num_classes,
        }


def _build(architecture: str, config: Mapping[str, Any]) -> ModelDenoiser:
    return ModelDenoiser(create_model(architecture, **config))


for _name in ("GET", "DEQ-UNet"):
    register_architecture(_name, partial(_build, _name))
