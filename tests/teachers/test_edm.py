from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deqgen.teachers.edm import EDMDenoiser, edm_loss
from deqgen.teachers.unet import UNet, UNetConfig

SMALL = UNetConfig(
    image_size=8, num_classes=3, widths=(16, 32), blocks=(1, 1), attention=(True, False),
    embedding=16,
)  # fmt: skip


class Recorder(nn.Module):
    """A raw network that returns a fixed tensor and keeps its inputs."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw
        self.config = SMALL
        self.inputs: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        self.inputs = (x, noise, label)
        return self.raw


@pytest.mark.parametrize("sigma", [0.01, 0.5, 5.0, 80.0])
def test_input_and_target_of_the_network_have_unit_variance(sigma: float) -> None:
    """EDM's design criterion (appendix B.6), for data of standard deviation 0.5."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(64, 3, 32, 32, generator=generator)
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    network = Recorder(torch.zeros_like(clean))
    level = torch.full((64,), sigma)
    skipped = EDMDenoiser(network)(noisy, level)  # c_skip x, as F = 0
    assert float(network.inputs[0].var()) == pytest.approx(1, abs=0.02)
    network.raw = torch.ones_like(clean)
    c_out = (EDMDenoiser(network)(noisy, level) - skipped).mean()
    assert float(((clean - skipped) / c_out).var()) == pytest.approx(1, abs=0.02)
    assert torch.allclose(network.inputs[1], level.log() / 4)


def test_no_label_is_the_null_class() -> None:
    network = Recorder(torch.zeros(2, 3, 8, 8))
    EDMDenoiser(network)(torch.zeros(2, 3, 8, 8), torch.ones(2))
    assert network.inputs[2].tolist() == [3, 3]


def test_the_loss_is_one_for_a_network_that_has_learnt_nothing_and_zero_for_an_oracle() -> None:
    clean = 0.5 * torch.randn(512, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(512, dtype=torch.int64)
    ignorant = EDMDenoiser(Recorder(torch.zeros_like(clean)))
    loss = edm_loss(ignorant, clean, label, torch.Generator().manual_seed(1))
    assert float(loss) == pytest.approx(1, abs=0.02)

    class Oracle(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            return clean

    assert float(edm_loss(Oracle(), clean, label, torch.Generator().manual_seed(1))) == 0


def test_the_loss_depends_on_its_generator_alone() -> None:
    model = EDMDenoiser(UNet(SMALL))
    clean, label = torch.ones(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    before = torch.get_rng_state()
    first, again, other = (
        edm_loss(model, clean, label, torch.Generator().manual_seed(s)).item() for s in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())
