from __future__ import annotations

import pytest
import torch

from deqgen.teachers.edm import EDMDenoiser
from deqgen.teachers.unet import UNet, UNetConfig


@pytest.fixture
def denoiser() -> EDMDenoiser:
    """A U-Net of a few thousand parameters, none of them zero, so that everything matters."""
    config = UNetConfig(
        image_size=8,
        num_classes=4,
        widths=(16, 32),
        blocks=(1, 1),
        attention=(False, True),
        embedding=16,
    )
    network = EDMDenoiser(UNet(config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
            parameter.add_(0.02)
    return network
