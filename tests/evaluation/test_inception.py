"""The network of FID: its layers, its deviations from the paper, and what it does with images."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from deqgen.data.images import to_float, to_uint8
from deqgen.evaluation import EvaluationInputError
from deqgen.evaluation.inception import InceptionV3, tensorflow_resize
from deqgen.evaluation.inception_blocks import BatchNorm, MixedA, MixedE
from tests.evaluation.patterns import patterns
from tests.evaluation.ruled import ruled_image, ruled_weights, sampled

GOLDEN = Path(__file__).parents[1] / "golden" / "inception.safetensors"

# Channels and side of what each layer gives for a 299x299 image: table 1 of the paper, with the
# channels inside each block as its released network has them.
SHAPES = {
    "Conv2d_1a_3x3": (32, 149),
    "Conv2d_2a_3x3": (32, 147),
    "Conv2d_2b_3x3": (64, 147),
    "Conv2d_3b_1x1": (80, 73),
    "Conv2d_4a_3x3": (192, 71),
    "Mixed_5b": (256, 35),
    "Mixed_5c": (288, 35),
    "Mixed_5d": (288, 35),
    "Mixed_6a": (768, 17),
    "Mixed_6b": (768, 17),
    "Mixed_6c": (768, 17),
    "Mixed_6d": (768, 17),
    "Mixed_6e": (768, 17),
    "Mixed_7a": (1280, 8),
    "Mixed_7b": (2048, 8),
    "Mixed_7c": (2048, 8),
}


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """With weights by rule, in float64."""
    net = InceptionV3().double().eval().requires_grad_(False)
    net.load_state_dict(ruled_weights({k: tuple(v.shape) for k, v in net.state_dict().items()}))
    return net


@pytest.fixture(scope="module")
def single(network: InceptionV3) -> InceptionV3:
    """The same in float32."""
    weights = {name: value.float() for name, value in network.state_dict().items()}
    net = InceptionV3().eval().requires_grad_(False)
    net.load_state_dict(weights)
    return net


def watched(network: nn.Module, image: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What each layer gives, and the two results."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        return getattr(network, name).register_forward_hook(
            lambda module, inputs, output: seen.update({name: output})
        )

    handles = [keep(name) for name in SHAPES]
    features, logits = network(image)
    for handle in handles:
        handle.remove()
    return seen, features, logits


def test_it_matches_the_recorded_network_layer_by_layer(network: InceptionV3) -> None:
    """Recorded from pytorch-fid's network, which is torchvision's with its blocks replaced."""
    golden = load_file(GOLDEN)
    seen, features, logits = watched(network, ruled_image())
    assert {name: tuple(seen[name].shape) for name in SHAPES} == {
        name: (1, channels, side, side) for name, (channels, side) in SHAPES.items()
    }
    for name in SHAPES:
        assert float(golden[name].abs().max()) > 0.5, "the rule keeps activations alive"
        torch.testing.assert_close(sampled(seen[name]), golden[name], rtol=1e-9, atol=1e-9)
    assert features.shape == (1, 2048) and logits.shape == (1, 1008)
    torch.testing.assert_close(features[0], golden["features"], rtol=1e-9, atol=1e-9)
    with_bias = logits[0] + network.fc.bias  # our logits are without, as the Inception score wants
    torch.testing.assert_close(with_bias, golden["logits_with_bias"], rtol=1e-9, atol=1e-9)


def test_it_has_the_published_numbers_of_parameters(network: InceptionV3) -> None:
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(sizes.values()) == 23_850_960
    assert sizes["fc.weight"] + sizes["fc.bias"] == 1008 * 2049
    # Keras documents 23,851,784 for 1000 classes with the statistics and without the factors of
    # its batch norms: 17,216 channels.
    channels = sum(len(m.weight) for m in network.modules() if isinstance(m, BatchNorm))
    assert channels == 17_216
    assert sum(sizes.values()) - 8 * 2049 + 2 * channels - channels == 23_851_784
    names = set(network.state_dict())
    assert len(names) == 94 * 5 + 2  # convolution, four of batch norm; the classifier
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch1x1.bn.running_mean",
        "Mixed_6e.branch7x7dbl_5.bn.running_var",
        "Mixed_7c.branch3x3dbl_3b.conv.weight",
        "fc.weight",
    } <= names


def test_deviation_1_an_average_at_the_border_does_not_count_the_padding() -> None:
    block = MixedA(8, 32).double().eval()
    block.load_state_dict(ruled_weights({k: tuple(v.shape) for k, v in block.state_dict().items()}))
    flat = torch.ones(1, 8, 9, 9, dtype=torch.float64)
    pooled = block(flat)[:, -32:]
    torch.testing.assert_close(pooled, pooled[:, :, 4:5, 4:5].expand_as(pooled))


def test_deviation_2_only_the_last_block_takes_the_maximum() -> None:
    x = torch.rand(1, 16, 8, 8, dtype=torch.float64)
    pooled = {}
    for last in (False, True):
        block = MixedE(16, last=last).double().eval()
        shapes = {k: tuple(v.shape) for k, v in block.state_dict().items()}
        block.load_state_dict(ruled_weights(shapes))
        windows = x[:, :, :3, :3].flatten(2)
        chosen = windows.amax(2) if last else windows.mean(2)
        expected = block.branch_pool(chosen[:, :, None, None])[..., 0, 0]
        pooled[last] = block(x)[:, -192:, 1, 1]
        torch.testing.assert_close(pooled[last], expected)
    assert not torch.allclose(pooled[False], pooled[True])


def resized_by_hand(image: Tensor, side: int) -> Tensor:
    """TensorFlow 1's ``resize_bilinear``, pixel by pixel: (C, H, W) to (C, side, side)."""
    channels, height, width = image.shape
    result = torch.empty(channels, side, side, dtype=image.dtype)
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * width / side  # no half-pixel centres
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            above = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
            below = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
            result[:, i, j] = above * (1 - y + top) + below * (y - top)
    return result


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7))
def test_resizing_is_tensorflow_1s(height: int, width: int, side: int) -> None:
    image = (torch.arange(2 * height * width) * 37 % 256).double().view(2, height, width)
    expected = resized_by_hand(image, side)
    torch.testing.assert_close(tensorflow_resize(image[None], side)[0], expected, rtol=0, atol=2e-4)


def test_resizing_equals_a_shifted_sampling_grid() -> None:
    """A second way to the same picture: sampling with a grid moved by half a pixel of difference,
    which is how NVIDIA's network imitates TensorFlow."""
    levels = to_uint8(patterns(2)).double()
    shift = 1 / 32 - 1 / 299
    moves = torch.tensor([[[1, 0, shift], [0, 1, shift]]], dtype=torch.float64).expand(2, -1, -1)
    grid = nn.functional.affine_grid(moves, [2, 3, 299, 299], align_corners=False)
    expected = nn.functional.grid_sample(
        levels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    ours = tensorflow_resize(levels)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)
    modern = nn.functional.interpolate(levels, size=(299, 299), mode="bilinear")
    assert float((ours - modern).abs().max()) > 5, "the modern resize is another picture"


def test_an_image_of_the_networks_size_is_left_alone() -> None:
    levels = (ruled_image() * 100 + 128).float()
    assert torch.equal(tensorflow_resize(levels), levels)


def test_a_measurement_is_of_the_rounded_resized_image(single: InceptionV3) -> None:
    images = patterns(2)
    features, logits = single.measure(images)
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    assert features.dtype == logits.dtype == torch.float32 and not features.requires_grad
    by_hand = (tensorflow_resize(to_uint8(images).float()) - 128) / 128
    expected, _ = single(by_hand)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        saved, _ = single.measure(to_float(to_uint8(images)).double())
    torch.testing.assert_close(saved, features, rtol=0, atol=0)


def test_images_are_measured_one_by_one(
    single: InceptionV3, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = patterns(3)
    whole, _ = single.measure(images)
    monkeypatch.setattr("deqgen.evaluation.inception.AT_ONCE", 2)  # parts of 2 and 1
    parts, _ = single.measure(images)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    none, no_logits = single.measure(images[:0])
    assert none.shape == (0, 2048) and no_logits.shape == (0, 1008)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 32, 32), r"\(B, 3, H, W\); got \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 0, 32), r"got \(2, 3, 0, 32\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floating point"),
        (torch.full((2, 3, 8, 8), torch.nan), "finite, but 2 of 2"),
    ],
    ids=["grey", "empty", "bytes", "nan"],
)
def test_other_images_get_one_sentence(images: Tensor, message: str) -> None:
    with pytest.raises(EvaluationInputError, match=message):
        InceptionV3().measure(images)


def test_its_fingerprint_tells_weights_apart(single: InceptionV3) -> None:
    before = single.fingerprint
    with torch.no_grad():
        single.fc.bias[7] += 1
    assert single.fingerprint != before
    with torch.no_grad():
        single.fc.bias[7] -= 1
