"""LPIPS and DISTS on a VGG16 of random weights, beside torchmetrics' own on the same weights."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deqgen.models import ModelFileError
from deqgen.training import TrajectoryLoss
from deqgen.training.perceptual import PerceptualDistance
from deqgen.training.vgg import VGG16

NAMES = ["lpips", "dists"]
# Configuration D as numbers of torchvision's layers: convolutions by their channels, M for pooling.
PLAN = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"]

pytest.importorskip("torchmetrics.functional.image.dists")


def torchvision_like(seed: int = 0) -> nn.Sequential:
    """``vgg16().features`` with random weights that neither fade nor explode."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for entry in PLAN:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.utils.skip_init(nn.Conv2d, channels, entry, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, generator=generator)
        nn.init.normal_(convolution.bias, std=0.1, generator=generator)
        layers += [convolution, nn.ReLU()]
        channels = entry
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    return torchvision_like()


@pytest.fixture(scope="module")
def vgg(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision's, with a part that is not needed here."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    weights = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save({**weights, "classifier.6.bias": torch.zeros(1000)}, path)
    return path


def images(size: int = 48, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    noise = torch.randn(count, 3, size, size, generator=generator)
    return image, (image + 0.2 * noise).clamp(-1, 1)


def oracle(
    name: str, features: nn.Sequential, monkeypatch: pytest.MonkeyPatch, a: Tensor, b: Tensor
) -> Tensor:
    """torchmetrics' distance of each image in float64, its torchvision replaced by ``features``."""
    module: Any
    if name == "lpips":
        import torchmetrics.functional.image.lpips as module

        monkeypatch.setattr(module, "_get_tv_model_features", lambda *_: features)
        value = module._LPIPS(net="vgg").double()(a.double(), b.double())
    else:
        import torchmetrics.functional.image.dists as module

        class Everything(ModuleType):
            DEFAULT = None
            features: nn.Module

        network = Everything("vgg16")
        network.features = features
        monkeypatch.setattr(module, "_TORCHVISION_AVAILABLE", True)
        monkeypatch.setattr(module, "VGG16_Weights", network, raising=False)
        monkeypatch.setattr(module, "vgg16", lambda weights: network, raising=False)
        value = module.DISTSNetwork().double()((a.double() + 1) / 2, (b.double() + 1) / 2)
    features.float()
    found: Tensor = value.detach().flatten()
    return found


def test_the_network_is_the_published_one(vgg: Path, features: nn.Sequential) -> None:
    with torch.device("meta"):
        network = VGG16()
        published = sum(p.numel() for p in network.parameters())
        shapes = [tuple(stage.shape) for stage in network(torch.empty(2, 3, 224, 224))]
    assert published == 14_714_688
    assert shapes == [
        (2, 64, 224, 224), (2, 128, 112, 112), (2, 256, 56, 56), (2, 512, 28, 28), (2, 512, 14, 14)
    ]  # fmt: skip
    ours = PerceptualDistance("lpips", vgg).network
    assert not any(p.requires_grad for p in ours.parameters())
    image, _ = images()
    hidden, wanted = image, []
    for number, layer in enumerate(features):
        hidden = layer(hidden)
        if number in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
            wanted.append(hidden)
    assert all(torch.equal(a, b) for a, b in zip(ours(image.clone()), wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [48, 33])
def test_the_distance_is_that_of_torchmetrics(
    name: str, size: int, vgg: Path, features: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = images(size)
    wanted = oracle(name, features, monkeypatch, a, b)
    ours = PerceptualDistance(name, vgg, size=None)
    single = torch.stack([ours(a[i : i + 1], b[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(single.double(), wanted, rtol=5e-5, atol=0)
    torch.testing.assert_close(ours(a, b).double(), wanted.mean(), rtol=5e-5, atol=0)
    exact = ours.double()(a.double(), b.double())
    torch.testing.assert_close(exact, wanted.mean(), rtol=1e-9, atol=0)
    assert float(wanted.min()) > 0.005


@pytest.mark.parametrize("name", NAMES)
def test_images_are_enlarged_as_asked(name: str, vgg: Path) -> None:
    a, b = images(32, count=1)
    bigger = [nn.functional.interpolate(x, (64, 64), mode="bilinear") for x in (a, b)]
    wanted = PerceptualDistance(name, vgg, size=None)(*bigger)
    assert torch.equal(PerceptualDistance(name, vgg, size=64)(a, b), wanted)
    assert PerceptualDistance(name, vgg).size == 224


@pytest.mark.parametrize("name", NAMES)
def test_equal_images_are_at_distance_zero_and_the_gradient_is_finite(name: str, vgg: Path) -> None:
    distance = PerceptualDistance(name, vgg, size=None)
    for image in (images(32)[0], torch.zeros(2, 3, 32, 32), -torch.ones(2, 3, 32, 32)):
        image = image.clone().requires_grad_()
        value = distance(image, image.detach())
        assert float(value.detach()) == 0.0
        (gradient,) = torch.autograd.grad(value, image)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, vgg: Path) -> None:
    a, b = (x.double() for x in images(16, count=1))
    distance = PerceptualDistance(name, vgg, size=None).double()
    assert torch.autograd.gradcheck(
        lambda image: distance(image, b), a.requires_grad_(), fast_mode=True
    )
    target = b.requires_grad_()
    assert distance(a.detach(), target).grad_fn is None  # only the first argument learns


@pytest.mark.parametrize("name", NAMES)
def test_descending_it_leads_to_the_target(name: str, vgg: Path) -> None:
    distance = PerceptualDistance(name, vgg, size=None)
    a, b = images(16, count=1)
    image = a.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.03)
    before = float(distance(a, b))
    for _ in range(8):
        optimizer.zero_grad()
        distance(image, b).backward()
        optimizer.step()
    assert float(distance(image.detach(), b)) < 0.8 * before
    assert all(p.grad is None for p in distance.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str, vgg: Path) -> None:
    distance = PerceptualDistance(name, vgg, size=None)
    a, b = images(32)
    wanted = distance(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(a, b), wanted)
        assert distance(a.bfloat16(), b).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_as_the_distance_of_a_trajectory(name: str, vgg: Path) -> None:
    distance = PerceptualDistance(name, vgg, size=None)
    looked: list[int] = []
    distance.network.register_forward_hook(lambda *_: looked.append(1))
    a, b = images(16)
    states = [a.clone().requires_grad_() for _ in range(3)]
    value = TrajectoryLoss(0.5, distance)(states, b)
    assert len(looked) == 4  # the target once
    assert float(value.detach()) == pytest.approx(1.75 * float(distance(a, b)), rel=1e-6)
    gradients = torch.autograd.grad(value, states)
    torch.testing.assert_close(gradients[0] * 4, gradients[2])
    last = TrajectoryLoss(distance=distance, weights="last")(states, b).detach()
    assert float(last) == pytest.approx(float(distance(a, b)), rel=1e-6)


def test_nothing_is_drawn(vgg: Path) -> None:
    before = torch.get_rng_state()
    PerceptualDistance("dists", vgg, size=None)(*images(16))
    assert torch.equal(before, torch.get_rng_state())


def test_weights_in_safetensors_and_in_half_precision(vgg: Path, tmp_path: Path) -> None:
    weights = torch.load(vgg, weights_only=True)
    save_file(weights, tmp_path / "vgg.safetensors")
    heads = {
        f"lin{k}.model.1.weight": torch.ones(1, c, 1, 1)
        for k, c in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(heads, tmp_path / "heads.pth")
    a, b = images(16)
    one = PerceptualDistance("lpips", vgg, tmp_path / "heads.pth", size=None)
    other = PerceptualDistance(
        "lpips", tmp_path / "vgg.safetensors", str(tmp_path / "heads.pth"), size=None
    )
    assert torch.equal(one(a, b), other(a, b))
    assert not torch.equal(one(a, b), PerceptualDistance("lpips", vgg, size=None)(a, b))
    torch.save({name: tensor.half() for name, tensor in weights.items()}, tmp_path / "half.pth")
    half = PerceptualDistance("lpips", tmp_path / "half.pth", size=None)
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_a_file_may_change_after_it_was_read(vgg: Path, tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    path.write_bytes(vgg.read_bytes())
    distance = PerceptualDistance("lpips", path, size=None)
    path.write_bytes(b"")  # a mapped file would take the process with it
    assert torch.equal(
        distance(*images(16)), PerceptualDistance("lpips", vgg, size=None)(*images(16))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lpps", "x.pth"), "no distance 'lpps': lpips, dists. Did you mean 'lpips'"),
        (("lpips", None), "lpips needs the weights of VGG16: a path of vgg16-397923af.pth"),
        (("dists", "x.pth", None, 8), "size must be at least 16, got 8"),
    ],
    ids=["name", "weights", "size"],
)
def test_wrong_arguments(arguments: tuple[Any, ...], message: str) -> None:
    options = {"size": arguments[3]} if len(arguments) > 3 else {}
    with pytest.raises(ValueError, match=message):
        PerceptualDistance(*arguments[:3], **options)


def test_wrong_images(vgg: Path) -> None:
    distance = PerceptualDistance("lpips", vgg, size=None)
    a, b = images(16)
    with pytest.raises(ValueError, match=r"image and target differ in shape: \(1, .*\), \(2, "):
        distance(a[:1], b)
    with pytest.raises(ValueError, match=r"compares images \(B, 3, H, W\), got shape \(2, 1, 16"):
        distance(a[:, :1], b[:, :1])
    with pytest.raises(ValueError, match=r"needs 16 pixels a side, got \(2, 3, 8, 8\)"):
        distance(a[..., :8, :8], b[..., :8, :8])


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("kind", ["cut", "none", "empty", "code", "list", "odd.safetensors"])
def test_a_damaged_file_is_one_sentence(
    kind: str, vgg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / kind
    if kind == "code":
        torch.save({"features.0.weight": Payload()}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    else:
        cut = vgg.read_bytes()[:1_000_000]
        path.write_bytes({"cut": cut, "none": b"text", "empty": b""}.get(kind, b"odd"))
    for weights, heads in ((path, None), (vgg, path)):
        with pytest.raises(ModelFileError, match=r"is (damaged|refused)|holds a list") as caught:
            PerceptualDistance("lpips", weights, heads)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_file_of_something_else(vgg: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(FileNotFoundError, match=r"there is no file of weights at .*a\.pth"):
        PerceptualDistance("lpips", path)
    weights = torch.load(vgg, weights_only=True)
    cases = [
        ({}, "missing features.0.bias, features.0.weight, .* and 22 more"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, "should have shape .*64, 3, 3, 3"),
        ({"features.0.weight": torch.full((64, 3, 3, 3), torch.nan)}, "no finite number"),
        ({"features.0.bias": torch.zeros(64, dtype=torch.int64)}, "no finite number"),
        ({"features.0.bias": "text"}, "missing features.0.bias"),
    ]
    for change, message in cases:
        torch.save({**weights, **change} if change else {}, path)
        with pytest.raises(ModelFileError, match=message):
            PerceptualDistance("lpips", path)
    with pytest.raises(ModelFileError, match="weights of dists: missing alpha, beta"):
        PerceptualDistance("dists", vgg, vgg)


def test_without_torchmetrics(vgg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"dists needs heads.*pip install 'deqgen\[perceptual\]'"):
        PerceptualDistance("dists", vgg)
