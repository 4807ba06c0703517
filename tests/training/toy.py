"""A model and an objective small enough to train in a test."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deqgen.training import Checkpoints, TrainConfig


def small_model() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def exact_model() -> nn.Module:
    """In float64, and without statistics over a batch."""
    model = small_model()
    return nn.Sequential(model[0], model[2], model[3]).double()  # type: ignore[index]


class Regression:
    """Noisy inputs, linear targets; the noise comes from the step's generator."""

    def __init__(self, count: int = 24, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(count, 4, generator=generator, dtype=dtype)
        self.targets = self.inputs[:, :2] - self.inputs[:, 2:]
        self.seen: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        self.seen.append(indices.tolist())
        chosen = torch.from_numpy(indices)
        noise = 0.1 * torch.randn(len(chosen), 4, generator=generator, dtype=self.inputs.dtype)
        error: Tensor = model(self.inputs[chosen] + noise) - self.targets[chosen]
        return error.square().mean()


class Dropping(Regression):
    """Draws from all global generators, as a model with dropout does from torch's."""

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        kept = nn.functional.dropout(torch.ones(()), 0.3)
        scale = random.uniform(0.5, 1.0) * np.random.uniform(0.5, 1.0)
        return super().loss(model, indices, generator) * (0.1 + kept) * scale


def seed_all(seed: int) -> None:
    """Every global generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


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


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, down through containers."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def state(directory: Path, *, without: Iterable[str] = ("random",)) -> dict[str, Any]:
    """The newest checkpoint without what a clock or the length of the run puts in it."""
    loaded = Checkpoints(directory).load()
    assert loaded is not None
    left_out = {"seconds", "run", "losses", "gradient_norms", *without}
    kept = {key: value for key, value in loaded.state.items() if key not in left_out}
    return {"model": loaded.model, "ema": loaded.ema, **kept}
