from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqgen.teachers.unet import UNet, UNetConfig
from tests.teachers.test_edm import SMALL


def lively(config: UNetConfig) -> UNet:
    """A network whose zero-initialised layers are drawn too, so that everything acts."""
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


def inputs(config: UNetConfig, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (count, config.channels, config.image_size, config.image_size)
    return (
        torch.randn(shape, generator=generator),
        torch.linspace(-1.5, 1.0, count),
        torch.arange(count),
    )


def test_the_shipped_size() -> None:
    network = UNet()
    assert sum(p.numel() for p in network.parameters()) == 3_837_708
    with torch.no_grad():
        assert not network(*inputs(network.config)).any()  # starts at zero


@pytest.mark.parametrize("config", [SMALL, UNetConfig(channels=1, image_size=16)])
def test_every_input_acts_and_rows_are_independent(config: UNetConfig) -> None:
    network = lively(config)
    x, noise, label = inputs(config)
    with torch.no_grad():
        out = network(x, noise, label)
        alone = network(x[1:2], noise[1:2], label[1:2])
        changed = [
            network(x + 0.1, noise, label),
            network(x, noise + 0.1, label),
            network(x, noise, label.flip(0)),
        ]
    assert out.shape == x.shape
    torch.testing.assert_close(out[1:2], alone, rtol=1e-4, atol=1e-5)
    for other in changed:
        assert (other - out).abs().amax() > 1e-4


def test_every_parameter_is_used() -> None:
    network = lively(SMALL)
    network(*inputs(SMALL)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 20}, "image_size 20 must be divisible by 8"),
        ({"widths": (64, 100, 256)}, "multiples of 16"),
        ({"blocks": (1, 1)}, "one entry for every level"),
    ],
)
def test_bad_sizes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**changes)
