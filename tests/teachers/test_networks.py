from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deqgen.teachers.networks import DhariwalUNet, SongUNet
from deqgen.teachers.networks.resampling import HalvingConv, Resample, double, halve, low_pass
from deqgen.teachers.preconditioning import EDMPrecond
from tests.teachers.edm_networks import TOYS, inputs, toy

CIFAR = {"model_type": "SongUNet", "augment_dim": 9, "channel_mult": [2, 2, 2], "dropout": 0.13}
FFHQ = {**CIFAR, "channel_mult": [1, 2, 2, 2]}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}


@pytest.mark.parametrize(
    ("side", "classes", "options", "parameters", "published"),
    [
        (32, 0, CIFAR, 55_733_891, 55.7),
        (32, 10, CIFAR, 55_735_299, 55.7),
        (32, 0, {**CIFAR, **NCSNPP}, 56_397_827, 56.4),
        (64, 0, FFHQ, 61_805_571, 61.8),
        (64, 0, {**FFHQ, **NCSNPP}, 62_761_091, 62.8),
        (64, 1000, {"model_type": "DhariwalUNet"}, 295_899_267, 295.9),
    ],
    ids=["cifar10-vp", "cifar10-cond-vp", "cifar10-ve", "ffhq-vp", "ffhq-ve", "imagenet64-adm"],
)
def test_published_sizes(
    side: int, classes: int, options: dict[str, Any], parameters: int, published: float
) -> None:
    """Counts of our own build; EDM's Table 7 rounds them to 56M, 62M, 63M and 296M."""
    with torch.device("meta"):
        network = EDMPrecond(side, 3, classes, **options)
        label = torch.empty(2, dtype=torch.int64) if classes else None
        out = network(torch.empty(2, 3, side, side), torch.empty(2), label)
    assert out.shape == (2, 3, side, side)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert round(parameters / 1e6, 1) == published


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4), (1, 0, 2, 5, 1, 3)])
def test_resampling_is_a_strided_convolution_and_its_transpose(taps: tuple[int, ...]) -> None:
    kernel = low_pass(taps).double()
    torch.testing.assert_close(kernel.sum(), torch.ones((), dtype=torch.float64))
    x = torch.randn((2, 3, 6, 6), dtype=torch.float64)
    padding = (len(taps) - 1) // 2
    expected = F.conv_transpose2d(
        x, 4 * kernel.expand(3, -1, -1, -1), stride=2, padding=padding, groups=3
    )
    torch.testing.assert_close(double(x, kernel), expected)
    # <double(x), y> = 4 <x, halve(y)>
    y = torch.randn((2, 3, 12, 12), dtype=torch.float64)
    torch.testing.assert_close((double(x, kernel) * y).sum(), 4 * (x * halve(y, kernel)).sum())


def test_the_box_filter_repeats_and_averages() -> None:
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        Resample((1, 1), up=True)(x), F.interpolate(x, scale_factor=2.0, mode="nearest")
    )
    torch.testing.assert_close(Resample((1, 1), up=False)(x), F.avg_pool2d(x, 2))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_a_halving_convolution_filters_what_it_convolved(taps: tuple[int, ...]) -> None:
    layer = HalvingConv(3, 5, 3, taps).double()
    x = torch.randn((2, 3, 8, 8), dtype=torch.float64)
    margin = len(taps) // 2 - 1
    full = F.conv2d(F.pad(x, [margin + 1] * 4), layer.weight, layer.bias)
    blurred = F.conv2d(full, layer.resample_filter.expand(5, -1, -1, -1), groups=5)
    torch.testing.assert_close(layer(x), blurred[:, :, ::2, ::2])


@pytest.mark.parametrize("name", TOYS)
def test_every_input_acts_and_rows_are_independent(name: str) -> None:
    network = toy(name)
    x, sigma, label = inputs(network)
    with torch.no_grad():
        out = network(x, sigma, label)
        alone = network(x[1:], sigma[1:], None if label is None else label[1:])
        changed = [network(x + 0.1, sigma, label), network(x, sigma * 1.5, label)]
        if label is not None:
            changed.append(network(x, sigma, label.flip(0)))
            changed.append(network(x, sigma))
    torch.testing.assert_close(out[1:], alone, rtol=1e-4, atol=1e-5)
    assert all((other - out).abs().amax() > 1e-3 for other in changed)


@pytest.mark.parametrize("name", TOYS)
def test_every_parameter_is_used(name: str) -> None:
    network = toy(name)
    x, sigma, label = inputs(network)
    raw = network.model(x, sigma.log(), network._one_hot(label, x), torch.ones(2, 9))
    raw.square().sum().backward()
    assert [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


@pytest.mark.parametrize("name", ["edm-ncsnpp", "edm-adm"])
def test_augmentation_labels_are_zero_unless_given(name: str) -> None:
    model = toy(name).model
    x, level = torch.randn(2, 3, 16, 16), torch.tensor([-0.5, 0.3])
    with torch.no_grad():
        without = model(x, level, None)
        torch.testing.assert_close(model(x, level, None, torch.zeros(2, 9)), without)
        assert (model(x, level, None, torch.ones(2, 9)) - without).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ["edm-ddpmpp", "edm-adm"])
def test_hidden_labels_and_dropout_act_in_training_alone(name: str) -> None:
    network = toy(name, label_dropout=1.0, dropout=0.0)
    x, sigma, label = inputs(network)
    with torch.no_grad():
        shown, hidden = network(x, sigma, label), network(x, sigma, None)
        assert (shown - hidden).abs().amax() > 1e-3
        torch.testing.assert_close(network.train()(x, sigma, label), hidden)
        dropping = toy(name, dropout=0.5)
        assert torch.equal(dropping(x, sigma, label), shown)
        assert not torch.equal(dropping.train()(x, sigma, label), shown)


@pytest.mark.parametrize("kind", [SongUNet, DhariwalUNet])
def test_a_fresh_network_starts_near_zero_with_the_blocks_as_identities(kind: Any) -> None:
    network = kind(16, 3, 3, model_channels=64, channel_mult=[1, 2], num_blocks=1).eval()
    with torch.no_grad():
        out: Tensor = network(torch.randn(2, 3, 16, 16), torch.zeros(2))
    assert out.abs().amax() < 1e-3
    branch_ends = [p for name, p in network.named_parameters() if ".conv1.weight" in name]
    assert branch_ends and all(p.abs().amax() < 1e-5 for p in branch_ends)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"embedding_type": "fourrier"}, ValueError, "Did you mean 'fourier'"),
        ({"encoder_type": "residue"}, ValueError, "Did you mean 'residual'"),
        ({"decoder_type": "residual"}, ValueError, "Available: skip, standard"),
        ({"img_resolution": 18, "channel_mult": [1, 2, 2]}, ValueError, "cannot be halved 2 times"),
        ({"channel_mult": []}, ValueError, "cannot be halved"),
        ({"resample_filter": [1, 2, 1]}, ValueError, r"even number of taps.*\[1, 2, 1\]"),
        ({"model_type": "SongUnet"}, ValueError, "Did you mean 'SongUNet'"),
        ({"model_channel": 16}, TypeError, "Did you mean 'model_channels'"),
        ({"sigma_dta": 0.5}, TypeError, "Did you mean 'sigma_data'"),
        ({"in_channels": 3}, TypeError, "unknown option of SongUNet 'in_channels'"),
    ],
)
def test_wrong_options_get_one_sentence(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        toy("edm-ddpmpp", **options)
    assert "\n" not in str(caught.value)
