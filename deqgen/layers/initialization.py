"""Random initial weights from a generator of their own, the global one untouched."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize


def initialize_transformer(module: nn.Module, generator: Generator) -> None:
    """Fill all linear maps, convolutions, norms and tables of ``module``.

    Linear maps and convolutions (as linear maps from the pixels they see) are Xavier-uniform
    (Glorot & Bengio 2010, eq. 16) with zero bias; norms are the identity; class tables are normal
    with standard deviation 0.02. Draws are made in float32 on the generator's device, module by
    module.

    Args:
        module: its parameters are overwritten.
        generator: the only source of randomness.

    Raises:
        ValueError: a weight with a parametrisation, which cannot be written; nothing was changed.
    """
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            raise ValueError(
                f"{name!r} has a parametrised weight, such as a weight norm, which is computed and "
                "cannot be overwritten. Initialise first, then normalise (remove_norm undoes it)."
            )
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            rows = part.weight.flatten(1)
            bound = math.sqrt(6.0 / (rows.shape[0] + rows.shape[1]))
            _fill(
                part.weight,
                _draw(part.weight, generator).uniform_(-bound, bound, generator=generator),
            )
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            _fill(part.weight, _draw(part.weight, generator).normal_(0, 0.02, generator=generator))


def _draw(like: Tensor, generator: Generator) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=generator.device)


@torch.no_grad()
def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values)
