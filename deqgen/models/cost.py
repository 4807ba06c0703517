"""What one pass of a network costs, counted without computing anything."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deqgen.gradients import Unrolled
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.models.registry import create_model


@torch.no_grad()
def multiply_adds(network: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of ``network(*inputs)``, by torch's own counter.

    The network is copied to the meta device, where shapes are followed and no number is computed:
    on a CPU the counter would miss the fused attention.

    Args:
        network: any module that does not look at values.
        inputs: as for a call; only shapes and dtypes matter.
    """
    shadow = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter:
        shadow(*(tensor.to("meta") for tensor in inputs))
    return int(counter.get_total_flops()) // 2


def model_multiply_adds(name: str, *, image_size: int = 32, channels: int = 3) -> int:
    """Multiply-adds of one image of a named model at its own number of steps.

    Counted in training mode and unrolled, which spends the whole budget of evaluations and decodes
    every state instead of one: under 1% more for the published sizes. A class adds no products to a
    GET, and next to none to a DEQ-UNet.
    """
    with torch.device("meta"):
        model = create_model(name, image_size=image_size, channels=channels)
        if isinstance(model, EquilibriumModel):
            model.deq.gradient = Unrolled()  # a solve to a tolerance would look at numbers
        noise = torch.empty(1, channels, image_size, image_size)
    return multiply_adds(model.train(), noise)
