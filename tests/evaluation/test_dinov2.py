"""DINOv2's class token: against recorded numbers, and how images and positions are prepared."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deqgen.data.images import to_float, to_uint8
from deqgen.evaluation import EvaluationInputError, load_features
from deqgen.evaluation.dinov2 import DINOv2
from tests.evaluation.patterns import patterns
from tests.evaluation.ruled import ruled_image, ruled_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "dinov2.safetensors"


def ruled(width: int = 128, depth: int = 3, grid: int = 16) -> DINOv2:
    """A small network with weights by rule, in float64."""
    net = DINOv2(width, depth, 4 * width, 14, grid).double().eval().requires_grad_(False)
    net.load_state_dict(ruled_weights({k: tuple(v.shape) for k, v in net.state_dict().items()}))
    return net


def test_it_matches_the_recorded_network() -> None:
    """Recorded from transformers' Dinov2Model, at the size for which the positions are."""
    (features,) = ruled()(ruled_image(224))
    torch.testing.assert_close(features, load_file(GOLDEN)["features"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "depth", "count", "name"),
    [
        (384, 12, 22_056_576, "dinov2_vits14"),
        (768, 12, 86_580_480, "dinov2_vitb14"),
        (1024, 24, 304_368_640, "dinov2"),
    ],
)
def test_the_published_sizes(width: int, depth: int, count: int, name: str) -> None:
    with torch.device("meta"):
        network = DINOv2(width, depth, 4 * width, 14, 37)
    assert sum(p.numel() for p in network.parameters()) == count
    assert (network.name, network.distance) == (name, f"fd_{name}")
    assert network.num_features == width and network.num_classes is None
    assert {
        "cls_token",
        "pos_embed",
        "mask_token",
        "patch_embed.proj.bias",
        "blocks.11.norm1.weight",
        "blocks.11.attn.qkv.bias",
        "blocks.11.attn.proj.weight",
        "blocks.11.ls1.gamma",
        "blocks.11.mlp.fc1.weight",
        "blocks.11.mlp.fc2.bias",
        "blocks.11.ls2.gamma",
        "norm.bias",
    } <= set(network.state_dict())


def cubic(distance: float) -> float:
    """Keys's kernel with a = -0.75, which PyTorch uses."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_positions_are_resized_with_the_authors_offset() -> None:
    """37x37 to 16x16, sampled at distances of 37 / 16.1 and not of 37 / 16."""
    network = ruled(64, 1, grid=37)
    matrix = torch.zeros(16, 37, dtype=torch.float64)
    for i in range(16):
        place = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), 36)] += cubic(place - j)
    learnt = network.pos_embed[0, 1:].view(37, 37, 64)
    expected = torch.einsum("ia,jb,abd->ijd", matrix, matrix, learnt).reshape(256, 64)
    positions = network.positions()
    assert positions.shape == (1, 257, 64)
    torch.testing.assert_close(positions[0, 1:], expected)
    assert torch.equal(positions[0, 0], network.pos_embed[0, 0])


def test_a_measurement_is_of_the_rounded_resized_normalised_image() -> None:
    network = ruled(64, 2, grid=37).float()
    images = patterns(33)  # more than one part
    features, logits = network.measure(images)
    assert logits is None and features.shape == (33, 64) and features.dtype == torch.float32
    x = nn.functional.interpolate(
        to_uint8(images[-2:]).double() / 255, size=224, mode="bicubic", antialias=True
    )
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    expected = network.double()((x - mean) / std)
    torch.testing.assert_close(features[-2:].double(), expected, rtol=1e-3, atol=1e-4)
    again, _ = network.float().measure(to_float(to_uint8(images[:2])))
    torch.testing.assert_close(again, features[:2], rtol=1e-4, atol=1e-5)


def test_a_file_gives_all_sizes(tmp_path: Path) -> None:
    network = ruled(192, 2, grid=5).float()
    path = tmp_path / "small.safetensors"
    save_file(network.state_dict(), path)
    loaded = load_features(path)
    assert isinstance(loaded, DINOv2)
    assert (loaded.num_features, len(loaded.blocks), loaded.grid) == (192, 2, 5)
    assert (loaded.name, loaded.distance) == ("dinov2_192", "fd_dinov2_192")
    assert loaded.fingerprint == network.fingerprint
    torch.testing.assert_close(loaded.measure(patterns(2))[0], network.measure(patterns(2))[0])


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


def test_other_networks_are_refused_by_their_names(tmp_path: Path) -> None:
    tensors = dict(ruled(64, 1).float().state_dict())
    registers = {**tensors, "register_tokens": torch.zeros(1, 4, 64)}
    giant = {
        **without(tensors, "blocks.0.mlp.fc1.weight"),
        "blocks.0.mlp.w12.weight": tensors["norm.bias"],
    }
    odd = {**tensors, "pos_embed": torch.zeros(1, 256, 64)}
    for content, message in [
        (registers, "missing nothing; unexpected register_tokens"),
        (giant, r"no DINOv2 of size S, B or L.*blocks\.0\.mlp\.fc1\.weight"),
        (odd, r"pos_embed should have shape \(1, 226, 64\), the file holds \(1, 256, 64\)"),
        (without(tensors, "blocks.0.ls1.gamma"), r"missing blocks\.0\.ls1\.gamma"),
    ]:
        save_file(
            {key: value.clone() for key, value in content.items()}, tmp_path / "x.safetensors"
        )
        with pytest.raises(EvaluationInputError, match=message):
            load_features(tmp_path / "x.safetensors")
