"""Exponential moving average of a model's weights, in float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deqgen.training.sharding import local


class Ema:
    """Average the weights, with a half-life or a power function counted in images.

    The half-life does not depend on the batch size. While a run is young, a ramp keeps it at a
    share of the images seen, so that the initial weights do not linger (EDM, arXiv 2206.00364).
    The power function weights the past by ``images ** power``, so that the average covers the same
    share of the run at any time (EDM2, Karras et al. 2023, arXiv 2312.02696, equations 1 to 3): its
    width, relative to the run, is ``sqrt((power + 1) / ((power + 2)**2 * (power + 3)))``.

    The average is float32 whatever the model's dtype: in bfloat16 it stalls, since one part in ten
    thousand is below the format's resolution.

    Args:
        model: the model in training; it is copied.
        half_life: images after which a weight's share has halved.
        ramp: the half-life is at most ``ramp`` times the images seen; 0 for no ramp.
        power: of the power function, which then takes the place of the half-life.

    Attributes:
        model: the copy that holds the average; in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        half_life: int,
        ramp: float = 0.05,
        power: float | None = None,
    ) -> None:
        self.half_life = half_life
        self.ramp = ramp
        self.power = power
        self.model: nn.Module = copy.deepcopy(model).to(torch.float32).eval().requires_grad_(False)

    def decay(self, images: int, batch_size: int) -> float:
        """Share of the old average that a step of ``batch_size`` keeps, after ``images`` images."""
        if self.power is not None:
            return float((1.0 - batch_size / images) ** (self.power + 1.0))
        half_life = min(self.half_life, self.ramp * images) if self.ramp else self.half_life
        return float(0.5 ** (batch_size / half_life)) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch_size: int) -> None:
        """Move towards the weights of ``model``; ``images`` counts this step's too.

        Where weights are in parts, each process moves the part that it holds.
        """
        averages, values = _tensors(self.model), _tensors(model)
        pairs = list(zip(averages, values, strict=True))
        moving = [(a, v.to(a.dtype)) for a, v in pairs if a.is_floating_point()]
        if moving:
            old, new = (list(side) for side in zip(*moving, strict=True))
            torch._foreach_lerp_(old, new, 1.0 - self.decay(images, batch_size))
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.model.load_state_dict(state)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and buffers, of the former what this process holds."""
    return [local(tensor) for tensor in (*model.parameters(), *model.buffers())]
