"""The original implementation's numbers, from its weights: see tests/golden/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from deqgen.gradients import Unrolled
from deqgen.models import GenerativeModel, create_model

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OURS = {
    "input_size": "image_size",
    "in_channels": "channels",
    "hidden_size": "width",
    "num_heads": "heads",
}


def recorded(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    config = {OURS.get(key, key): value for key, value in config.items()}
    if "uncond" in path.name:
        config["num_classes"] = None
    return tensors, config


def rebuilt(name: str, data: dict[str, Tensor], config: dict[str, Any]) -> GenerativeModel:
    model = create_model(name, **config)
    prefix = "weights."
    model.load_state_dict({k[len(prefix) :]: v for k, v in data.items() if k.startswith(prefix)})
    return model


def label_of(data: dict[str, Tensor], config: dict[str, Any]) -> Tensor | None:
    return data["label"] if config["num_classes"] else None


def loss_of(images: tuple[Tensor, ...], target: Tensor) -> Tensor:
    last = len(images) - 1
    return torch.stack(
        [0.8 ** (last - k) * (image - target).abs().mean() for k, image in enumerate(images)]
    ).sum()


def check_get(path: Path, build: Callable[..., GenerativeModel] = rebuilt) -> None:
    data, config = recorded(path)
    model = build("GET", data, config).train()
    label = label_of(data, config)
    out = model(data["noise"], label, z0=data["z0"])
    torch.testing.assert_close(torch.stack(out.images), data["train_states"], atol=1e-5, rtol=0)
    assert out.image is out.images[-1]
    loss = loss_of(out.images, data["noise"])
    torch.testing.assert_close(loss[None], data["train_loss"], atol=1e-5, rtol=0)
    loss.backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for key, value in data.items():
        if key.startswith("grad."):
            grad = parameters[key[5:]].grad
            torch.testing.assert_close(grad, value, atol=1e-5, rtol=0, msg=key)
            compared += 1
    assert compared >= 19
    with torch.no_grad():
        image = model.eval()(data["noise"], label, z0=data["z0"]).image
    torch.testing.assert_close(image, data["eval_image"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["get_cond", "get_uncond"])
@pytest.mark.parametrize(
    "gradient",
    [None, Unrolled(6, every=1), Unrolled(6, every=1, checkpoint=True)],
    ids=["default", "unrolled", "checkpoint"],
)
def test_get_states_loss_gradients_and_evaluation(name: str, gradient: Unrolled | None) -> None:
    def build(model: str, data: dict[str, Tensor], config: dict[str, Any]) -> GenerativeModel:
        return rebuilt(
            model, data, config if gradient is None else {**config, "gradient": gradient}
        )

    check_get(GOLDEN / f"{name}.safetensors", build)


@pytest.mark.parametrize("name", ["get_cond", "get_uncond"])
def test_get_against_the_full_recordings(name: str, shared: Path) -> None:
    check_get(shared / "parity" / f"{name}.safetensors")


def test_every_parameter_of_the_conditional_get_has_a_recorded_gradient() -> None:
    data, config = recorded(GOLDEN / "get_cond.safetensors")
    model = rebuilt("GET", data, config)
    trained = {f"grad.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {key for key in data if key.startswith("grad.")}


def check_vit(path: Path, build: Callable[..., GenerativeModel] = rebuilt) -> None:
    data, config = recorded(path)
    out = build("ViT", data, config)(data["noise"])
    torch.testing.assert_close(out.image, data["image"], atol=1e-5, rtol=0)


def test_vit_image() -> None:
    check_vit(GOLDEN / "vit_uncond.safetensors")


@pytest.mark.parametrize("name", ["get_cond", "vit_uncond"])
def test_positions_are_computed_to_the_last_bit(name: str) -> None:
    data, config = recorded(GOLDEN / f"{name}.safetensors")
    model = create_model("GET" if name.startswith("get") else "ViT", **config)
    assert torch.equal(model.state_dict()["pos_embed"], data["weights.pos_embed"])


@pytest.mark.parametrize("part", ["noise", "z0"])
def test_evaluation_notices_a_change(part: str) -> None:
    """The comparison above can fail: other inputs give another image."""
    data, config = recorded(GOLDEN / "get_cond.safetensors")
    model = rebuilt("GET", data, config).eval()
    inputs = {"noise": data["noise"], "z0": data["z0"]}
    inputs[part] = inputs[part].flip(0)
    with torch.no_grad():
        image = model(inputs["noise"], data["label"], z0=inputs["z0"]).image
    assert (image - data["eval_image"]).abs().max() > 1e-2
