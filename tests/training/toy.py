"""A model and an objective small enough to train in a test."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqgen.training import TrainConfig


def small_model() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


class Regression:
    """Noisy inputs, linear targets; the noise comes from the step's generator."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(count, 4, generator=generator)
        self.targets = self.inputs[:, :2] - self.inputs[:, 2:]
        self.seen: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        self.seen.append(indices.tolist())
        chosen = torch.from_numpy(indices)
        noise = 0.1 * torch.randn(len(chosen), 4, generator=generator)
        error: Tensor = model(self.inputs[chosen] + noise) - self.targets[chosen]
        return error.square().mean()


def config(**changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "images": 80,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "save_images": 16,
        "log_images": 16,
        "ema_half_life": 40,
    }
    return TrainConfig(**{**options, **changes})
