"""Images made by arithmetic alone: the same on every machine, with structure a network can see."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def patterns(count: int, start: int = 0) -> Tensor:
    """Smooth colour waves, (count, 3, 32, 32), float32 in [-1, 1]."""
    grid = torch.linspace(0, 2 * math.pi, 32, dtype=torch.float64)
    number = torch.arange(start, start + count, dtype=torch.float64)[:, None, None, None]
    colour = torch.arange(3, dtype=torch.float64)[:, None, None]
    across = torch.sin((number * 0.37 % 3) * grid[None, :] + colour + 1.7 * number)
    down = torch.cos((number * 0.61 % 3) * grid[:, None] - 0.5 * colour + 0.9 * number)
    return (0.6 * across + 0.4 * down).float()
