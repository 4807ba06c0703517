"""Weights and inputs that follow a rule, so that two programs can have the same without a file."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


def ruled_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Float64 tensors of these names and shapes; each depends on its own name and shape alone.

    Activations keep their size through the depth: weights are uniform with He's variance, batch
    norms have factors and variances about 1 and small shifts and means.
    """
    return {name: _ruled(name, shape) for name, shape in shapes.items()}


def _ruled(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.rand(shape, generator=generator, dtype=torch.float64)  # in [0, 1)
    if len(shape) > 1:
        return (values - 0.5) * math.sqrt(24 / math.prod(shape[1:]))
    if name.endswith(("bn.weight", "running_var")):
        return values + 0.5
    return (values - 0.5) * 0.4


def ruled_image(side: int = 299) -> Tensor:
    """An image (1, 3, side, side) between -1 and 1, float64, with structure at several scales."""
    place = torch.arange(side, dtype=torch.float64) / side
    colour = torch.arange(3, dtype=torch.float64)[:, None, None]
    down, across = place[:, None], place[None, :]
    coarse = torch.sin(5 * across + 3 * down + colour)
    fine = torch.cos(70 * across * down - 2 * colour)
    return (0.6 * coarse + 0.4 * fine)[None]


def sampled(values: Tensor, count: int = 16) -> Tensor:
    """The mean and ``count`` values at even distances, to compare large tensors by."""
    flat = values.double().flatten()
    picks = torch.arange(count) * (len(flat) // count) + (len(flat) // (2 * count))
    return torch.cat([flat.mean()[None], flat[picks]])
