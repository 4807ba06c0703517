"""The original implementation's numbers, from its weights, and our own from weights by a rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from deqgen.teachers import Sampler, Teacher, sample
from deqgen.teachers.preconditioner import Preconditioner
from deqgen.teachers.preconditioning import build_preconditioned
from tests.teachers.edm_networks import GOLDEN, TOYS, denoised

ORIGINAL = ("edm_ddpmpp", "edm_ncsnpp", "edm_adm", "vp_ddpmpp")


def recorded(shared: Path, name: str) -> tuple[Preconditioner, dict[str, Tensor]]:
    with safe_open(shared / "parity" / f"{name}.safetensors", "pt") as file:
        data = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    config = {
        "class_name": metadata["preconditioning"],
        "kwargs": json.loads(metadata["config"]),
    }
    network = build_preconditioned(config).eval()
    prefix = "weights."
    weights = {k[len(prefix) :]: v for k, v in data.items() if k.startswith(prefix)}
    network.load_state_dict(weights, strict=True)
    return network, data


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-5 of an image's largest value, or of 1: the toy VP network's images reach 300."""
    scale = theirs.abs().amax(dim=(1, 2, 3)).clamp(min=1)  # (B,)
    error = (ours - theirs).abs().amax(dim=(1, 2, 3))  # (B,)
    assert (error <= 1e-5 * scale).all(), f"errors {error.tolist()} at scales {scale.tolist()}"


@pytest.mark.parametrize("name", ORIGINAL)
def test_one_evaluation(name: str, shared: Path) -> None:
    network, data = recorded(shared, name)
    label = data["label_onehot"].argmax(dim=1) if "label_onehot" in data else None
    x = data["x"] * data["sigma"].reshape(-1, 1, 1, 1)
    with torch.no_grad():
        assert_same(network(x, data["sigma"], label), data["denoised"])
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert_same(network(x, data["sigma"], label), data["denoised"])
        if label is not None:  # the comparison can fail
            other = network(x, data["sigma"], label.flip(0))
            assert (other - data["denoised"]).abs().amax() > 1e-3


@pytest.mark.parametrize("name", ORIGINAL)
def test_six_heun_steps(name: str, shared: Path) -> None:
    network, data = recorded(shared, name)
    label = data["label_onehot"].argmax(dim=1) if "label_onehot" in data else None
    sampler = Sampler(steps=6)
    with torch.no_grad():
        images = sample(network, data["latents"], label, sampler=sampler)
    assert_same(images, data["heun6"])
    teacher = Teacher(
        network,
        image_shape=data["latents"].shape[1:],
        num_classes=network.num_classes,
        sampler=sampler,
    )
    assert_same(teacher.sample(data["latents"], label), data["heun6"])


@pytest.mark.parametrize("name", TOYS)
def test_outputs_with_weights_by_rule(name: str) -> None:
    """Ours, recorded when the test above passed; tests/golden/README.md says what that covers."""
    assert_same(denoised(name), load_file(GOLDEN)[name])


def test_recorded_outputs_differ_and_are_sane() -> None:
    golden = load_file(GOLDEN)
    assert golden.keys() == TOYS.keys()
    for name, images in golden.items():
        assert images.isfinite().all() and images.abs().amax() < 300, name
        assert all(
            (images - other).abs().amax() > 0.1 for key, other in golden.items() if key != name
        )
