"""Models by name, their configs, and what is said about wrong ones."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from deqgen.models import (
    GET,
    GETConfig,
    ViT,
    ViTConfig,
    create_model,
    list_models,
    register_model,
)

SMALL = {"image_size": 8, "width": 32, "heads": 4, "depth": 1}


def test_overrides_reach_the_config() -> None:
    model = create_model("GET-T/4", **SMALL, deq_depth=1, deq_mlp_ratio=2, num_classes=3)
    assert isinstance(model, GET)
    config = model.config
    assert (config.image_size, config.channels, config.patch, config.patch_size) == (8, 3, 4, 4)
    assert (config.num_classes, config.tokens, config.image_shape) == (3, 4, (3, 8, 8))
    assert isinstance(create_model("ViT-B/8", **SMALL), ViT)


@pytest.mark.parametrize("config", [GETConfig(num_classes=3, rtol=0.1), ViTConfig(image_size=64)])
def test_a_config_survives_json(config: Any) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3


def test_equal_seeds_equal_weights() -> None:
    def weights(seed: int | None) -> torch.Tensor:
        options: dict[str, Any] = {}
        if seed is not None:
            options["generator"] = torch.Generator().manual_seed(seed)
        return create_model("GET-N/4", **SMALL, **options).qkv_inj.weight

    assert torch.equal(weights(None), weights(0))
    assert torch.equal(weights(7), weights(7))
    assert not torch.equal(weights(7), weights(8))


def test_a_model_from_the_meta_device() -> None:
    with torch.device("meta"):
        model = create_model("GET-N/4", **SMALL)
    model.to_empty(device="cpu")
    model.initialize()
    direct = create_model("GET-N/4", **SMALL)
    for name, value in direct.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(model.initial_draw, direct.initial_draw)


def test_a_model_of_ones_own() -> None:
    @register_model("mine/1")
    def build(width: int = 16) -> ViT:
        return ViT(ViTConfig(**{**SMALL, "width": width}))

    assert create_model("mine/1", width=64).config.width == 64
    assert "mine/1" in list_models("mine*")
    with pytest.raises(TypeError, match="Did you mean 'width'"):
        create_model("mine/1", widht=64)
    with pytest.raises(ValueError, match="exists already"):
        register_model("mine/1")(build)


@pytest.mark.parametrize(
    ("name", "overrides", "error", "says"),
    [
        ("GET-T2", {}, ValueError, "Did you mean 'GET-T/2'"),
        ("get-b/2", {}, ValueError, "Did you mean 'GET-B/2'"),
        ("xyz", {}, ValueError, "Available: DEQ-UNet"),
        ("GET-T/2", {"num_clases": 3}, TypeError, "Did you mean 'num_classes'"),
        ("ViT-S/2", {"deq_depth": 3}, TypeError, "Did you mean 'depth'"),
        ("GET-T/2", {"patch_size": 3}, ValueError, "patch_size=3 does not divide image_size=32"),
        ("GET-T/2", {"heads": 3}, ValueError, "heads=3 does not divide width=256"),
        ("GET-T/2", {"width": 0}, ValueError, "width must be at least 1, got 0"),
        ("GET-T/2", {"width": 12.5}, TypeError, "width must be an integer"),
        ("GET-T/2", {"image_size": "32"}, TypeError, "image_size must be an integer"),
        ("GET-T/2", {"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ("GET-T/2", {"mlp_ratio": -1.0}, ValueError, "mlp_ratio must be 0 or more"),
        ("GET-T/2", {"rtol": "small"}, TypeError, "rtol must be a number"),
        ("GET-T/2", {"solver": "andersen"}, ValueError, "anderson"),
        ("GET-T/2", {"gradient": "unroled"}, ValueError, "Did you mean 'unrolled'"),
        ("GET-T/2", {"width": 6, "heads": 3}, ValueError, "multiple of 4"),
    ],
)
def test_mistakes(name: str, overrides: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        create_model(name, **overrides)
