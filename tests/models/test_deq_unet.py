"""The multi-scale equilibrium U-Net."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen import generate
from deqgen.models import (
    DEQUNet,
    DEQUNetConfig,
    GeneratorOutput,
    create_model,
    list_models,
    load_model,
    parameter_count,
    save_model,
)
from deqgen.models.cost import model_multiply_adds
from tests.models.test_behaviour import noise

SMALL: dict[str, Any] = {
    "image_size": 8,
    "width": 8,
    "scales": 3,
    "groups": 4,
    "num_classes": 5,
}
LABEL = torch.tensor([0, 1, 4, 1])


def small(*, seed: int = 1, **overrides: Any) -> DEQUNet:
    """A toy model whose last map is not zero, so that images differ."""
    generator = torch.Generator().manual_seed(seed)
    model = create_model("DEQ-UNet", generator=generator, **{**SMALL, **overrides})
    assert isinstance(model, DEQUNet)
    with torch.no_grad():
        model.decoder.conv.weight.normal_(0, 0.2, generator=generator)
    return model


# Parameters: unconditional; with ten classes; with noise levels; with both.
SIZES = {
    "DEQ-UNet-T": (4_063_683, 4_370_435, 4_402_179, 4_403_587),
    "DEQ-UNet-S": (16_229_251, 17_448_963, 17_577_987, 17_580_803),
    "DEQ-UNet-B": (50_605_827, 54_453_507, 54_745_347, 54_749_571),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name: str) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"num_classes": 10},
        {"noise_level": True},
        {"num_classes": 10, "noise_level": True},
    ]
    with torch.device("meta"):
        counts = tuple(parameter_count(create_model(name, **option)) for option in options)
    assert counts == SIZES[name]


def test_parameters_counted_by_hand() -> None:
    """Two scales of 8 and 16 channels, 1-channel images, one block everywhere."""

    def block(width: int) -> int:
        return 2 * (9 * width**2 + width) + 4 * width

    down, up, norms = 4 * 8 * 16 + 16, 16 * 32 + 32, 2 * (8 + 16)
    injection = (9 * 8 + 8) + block(8) + block(16) + down + norms
    cell = block(8) + block(16) + down + up + block(8) + norms
    decoder = (16 * 8 + 8) + 2 * 8 + (9 * 8 + 1)
    model = create_model("DEQ-UNet", image_size=8, channels=1, width=8, scales=2)
    assert parameter_count(model) == injection + cell + decoder


def test_names_and_defaults() -> None:
    assert list_models("DEQ-UNet*") == ["DEQ-UNet", "DEQ-UNet-B", "DEQ-UNet-S", "DEQ-UNet-T"]
    with torch.device("meta"):
        assert create_model("DEQ-UNet-T").config == create_model("DEQ-UNet").config
    config = DEQUNetConfig(num_classes=3, noise_level=True)
    assert DEQUNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]


@pytest.mark.parametrize("training", [True, False])
def test_one_type_of_output(training: bool) -> None:
    model = small().train(training)
    with torch.no_grad():
        out = model(noise(), LABEL)
    assert isinstance(out, GeneratorOutput)
    assert out.image.shape == (4, 3, 8, 8)
    assert out.image is out.images[-1] and len(out.images) == 1
    assert out.equilibrium is not None
    shapes = [tuple(leaf.shape) for leaf in out.equilibrium.z]
    assert shapes == [(4, 8, 8, 8), (4, 16, 4, 4), (4, 32, 2, 2)]
    assert out.equilibrium.solution.converged.all()


def test_unrolled_training_supervises_every_state() -> None:
    model = small(gradient="unrolled", solver="picard", max_steps=4)
    out = model(noise(), LABEL)
    assert len(out.images) == 4
    single = model.decode((out.equilibrium.states[1],))
    torch.testing.assert_close(out.images[1], single[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "channels", "overrides"),
    [
        (12, 1, {}),
        (8, 4, {"patch_size": 2}),
        (4, 3, {}),
        (20, 2, {"scales": 2, "blocks": 2, "depth": 2}),
        (5, 3, {"scales": 1}),
    ],
)
def test_other_images(side: int, channels: int, overrides: dict[str, Any]) -> None:
    model = small(image_size=side, channels=channels, num_classes=None, **overrides).eval()
    with torch.no_grad():
        image = model(noise(2, side=side, channels=channels)).image
    assert image.shape == (2, channels, side, side)
    assert image.std() > 0.01


def test_equal_calls_equal_bits() -> None:
    before = torch.get_rng_state()
    first, second = small().eval(), small().eval()
    with torch.no_grad():
        a, b = (m(noise(), LABEL, generator=torch.Generator().manual_seed(2)).image
                for m in (first, second))  # fmt: skip
    assert torch.equal(a, b)
    assert torch.equal(generate(first, [5, 6], 3), generate(second, [5, 6], 3))
    assert torch.equal(before, torch.get_rng_state())


def test_one_seed_one_image_whatever_the_batch() -> None:
    model = small()
    together = generate(model, [5, 6, 7], 3, batch_size=3)
    alone = generate(model, [7, 6], 3, batch_size=1)
    torch.testing.assert_close(alone, together[[2, 1]], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_z0_as_given_from_a_generator_or_recorded() -> None:
    model = small(max_steps=2).eval()
    with torch.no_grad():
        recorded = model(noise(), LABEL).image
        drawn = model(noise(), LABEL, generator=torch.Generator().manual_seed(1)).image
        z0 = model.initial_state(noise(), torch.Generator().manual_seed(1))
        assert torch.equal(model(noise(), LABEL, z0=z0).image, drawn)
    assert (recorded - drawn).abs().max() > 1e-3
    assert all(torch.equal(leaf[0], leaf[3]) for leaf in model.initial_state(noise()))


def test_the_class_matters() -> None:
    model = small().eval()
    with torch.no_grad():
        one, other = model(noise(), LABEL).image, model(noise(), LABEL.flip(0)).image
    assert (one - other).abs().amax(dim=(1, 2, 3))[[0, 3]].min() > 1e-3


def test_a_new_model_draws_black() -> None:
    assert create_model("DEQ-UNet", **SMALL)(noise(), LABEL).image.abs().max() == 0


def test_an_empty_batch() -> None:
    model = small()
    assert model(noise(0), LABEL[:0]).image.shape == (0, 3, 8, 8)
    with torch.no_grad():
        assert model.eval()(noise(0), LABEL[:0]).image.shape == (0, 3, 8, 8)


def test_a_copy_iterates_its_own_weights() -> None:
    model = small().eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(noise(), LABEL).image
        twin.cell.encoder[0][0].conv2.weight.add_(1)
        assert torch.equal(model(noise(), LABEL).image, before)
        assert not torch.equal(twin(noise(), LABEL).image, before)


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    model = small(rtol=1e-2)

    def run(enabled: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            image = model(noise(), LABEL).image
        weight = model.cell.encoder[0][0].conv1.weight
        return image, torch.autograd.grad(image.square().mean(), weight)[0]

    (image, grad), (half_image, half_grad) = run(False), run(True)
    assert half_image.dtype == half_grad.dtype == torch.float32
    assert 0 < (image - half_image).norm() < 0.05 * image.norm()
    assert (grad - half_grad).norm() < 0.1 * grad.norm()


def test_weights_in_bfloat16() -> None:
    model = small().bfloat16()
    assert model(noise(), LABEL).image.dtype == torch.bfloat16
    with torch.no_grad():
        assert model.eval()(noise(), LABEL).image.isfinite().all()


def test_there_and_back(tmp_path: Path) -> None:
    model = small(noise_level=True).eval()
    path = save_model(model, tmp_path / "model.safetensors")
    again = load_model(path)
    assert again.config == model.config
    sigma = torch.ones(4)
    with torch.no_grad():
        mine, other = (m(noise(), LABEL, sigma=sigma).image for m in (model, again))
    assert torch.equal(mine, other)


def test_a_model_from_the_meta_device() -> None:
    with torch.device("meta"):
        model = create_model("DEQ-UNet", **SMALL)
    assert isinstance(model, DEQUNet)
    model.to_empty(device="cpu")
    model.initialize()
    direct = create_model("DEQ-UNet", **SMALL)
    for name, value in direct.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(model.initial_draw, direct.initial_draw)


def test_products_are_those_of_the_whole_budget() -> None:
    """Counted without a number: 12 evaluations of a cell of 145 million, and what runs once."""
    assert model_multiply_adds("DEQ-UNet-T") / 1e6 == pytest.approx(12 * 144.7 + 82.7, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"image_size": 10}, ValueError, r"image_size=10 must be a multiple of .* = 4"),
        ({"image_size": 12, "patch_size": 2}, ValueError, "= 8 .patch_size=2, scales=3"),
        ({"image_size": 7, "patch_size": 2}, ValueError, "patch_size=2 does not divide"),
        ({"width": 6}, ValueError, "width=6 must be a multiple of groups=4"),
        ({"scales": 0}, ValueError, "scales must be at least 1"),
        ({"scales": 2.0}, TypeError, "scales must be an integer"),
        ({"noise_level": 1}, TypeError, "noise_level must be True or False, got 1"),
        ({"solver": "andersen"}, ValueError, "anderson"),
        ({"gradient": "fantom"}, ValueError, "Did you mean 'phantom'"),
        ({"heads": 3}, TypeError, "has no option 'heads'"),
    ],
)
def test_wrong_configs(overrides: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        small(**overrides)


@pytest.mark.parametrize(
    ("overrides", "inputs", "error", "says"),
    [
        ({"num_classes": None}, (noise(), LABEL), ValueError, "unconditional"),
        ({}, (noise(),), ValueError, "from 0 to 4; got None"),
        ({}, (noise(), LABEL + 1), ValueError, "holds 5"),
        ({}, (noise(), LABEL[:2]), ValueError, r"shape \(4,\)"),
        ({}, (noise(), LABEL.float()), TypeError, "int64"),
        ({}, (noise(side=16), LABEL), ValueError, r"\(B, 3, 8, 8\).*got \(4, 3, 16, 16\)"),
        ({}, (noise(channels=1), LABEL), ValueError, "channels=3"),
        ({}, (noise().long(), LABEL), TypeError, "int64"),
    ],
)
def test_wrong_inputs(
    overrides: dict[str, Any], inputs: tuple[Any, ...], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        small(**overrides)(*inputs)


def test_wrong_starts() -> None:
    model = small()
    maps = model.initial_state(noise())
    with pytest.raises(ValueError, match=r"z0\[1\] must have shape \(4, 16, 4, 4\), got \(4, 32,"):
        model(noise(), LABEL, z0=(maps[0], maps[2], maps[1]))
    with pytest.raises(ValueError, match=r"z0\[0\] must have shape \(4, 8, 8, 8\), got \(2, 8"):
        model(noise(), LABEL, z0=tuple(leaf[:2] for leaf in maps))
    with pytest.raises(TypeError, match="z0 must be a tuple of 3 maps, got 2"):
        model(noise(), LABEL, z0=maps[:2])
    with pytest.raises(TypeError, match="z0 must be a tuple of 3 maps, got Tensor"):
        model(noise(), LABEL, z0=maps[0])
    with pytest.raises(TypeError, match=r"z0\[0\] must be a floating-point tensor"):
        model(noise(), LABEL, z0=tuple(leaf.long() for leaf in maps))
    with pytest.raises(ValueError, match="1 generators for 4 samples"):
        model(noise(), LABEL, generator=[torch.Generator()])
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        model(noise(), LABEL, max_steps=0)
