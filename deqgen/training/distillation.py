"""Learn a teacher's map from its noise/image pairs alone (arXiv 2401.08639)."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqgen.data.dataset import PairDataset
from deqgen.training.losses import TrajectoryLoss


class Distillation:
    """Noise and label in, the teacher's image out.

    Args:
        pairs: what to learn from.
        loss: over all images that the model returns; the published one by default.
        conditional: give the pairs' labels to the model.
        device: where the model is.

    Raises:
        ValueError: ``conditional``, and the pairs have no labels.
    """

    def __init__(
        self,
        pairs: PairDataset,
        *,
        loss: TrajectoryLoss | None = None,
        conditional: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if conditional and not pairs.num_classes:
            raise ValueError(f"the pairs in {pairs.directory} have no labels to be conditional on")
        self.pairs = pairs
        self.criterion = loss or TrajectoryLoss()
        self.conditional = conditional
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.pairs)

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        """Loss of a batch; ``generator`` draws z0, anew each time a pair is seen."""
        batch = self.pairs.__getitems__(indices.tolist())
        noise = batch["noise"].to(self.device)  # (B, C, H, W)
        image = batch["image"].to(self.device)  # (B, C, H, W)
        label = batch["label"].to(self.device) if self.conditional else None  # (B,)
        value: Tensor = self.criterion(model(noise, label, generator=generator).images, image)
        return value
