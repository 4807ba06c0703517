"""The model benchmark drives the same network twice, and states what it measured."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from deqgen.gradients import Unrolled
from deqgen.models import create_model
from tests.solvers.torchdeq_cases import torchdeq_with_ours


@pytest.fixture
def speed(load) -> ModuleType:
    torchdeq_with_ours()  # imported once, in the way that raises no warning
    module: ModuleType = load("model_speed")
    return module


def tiny() -> tuple[Any, torch.Tensor]:
    """A GET whose last map is not zero, as it is before training, and noise for it."""
    model = create_model("GET-N/4", image_size=16, width=64, heads=2)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.final_layer.linear.weight, generator=generator)
    return model, torch.randn(2, 3, 16, 16, generator=generator)


@pytest.mark.parametrize("saving", [False, True])
def test_both_drivers_give_the_same_images_and_gradients(speed: ModuleType, saving: bool) -> None:
    model, noise = tiny()
    model.deq.gradient = Unrolled(speed.ITERATIONS, checkpoint=saving)
    driven = speed.Driven(model, saving)
    found = []
    for images in (model.train()(noise).images, driven.train()(noise)):
        assert len(images) == speed.ITERATIONS
        loss = sum((image - noise).abs().mean() for image in images)
        found.append(torch.autograd.grad(loss, model.qkv_inj.weight)[0])
    torch.testing.assert_close(found[0], found[1])
    with torch.no_grad():
        image = driven.eval()(noise)[-1]
        wanted = model.eval()(noise).image
    torch.testing.assert_close(image, wanted)


@pytest.mark.parametrize("half", [False, True])
def test_every_program_runs_and_changes_no_weight(speed: ModuleType, half: bool) -> None:
    model, noise = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for program in speed.Case(model, noise, half).programs().values():
        program()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_table(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BATCHES", {"GET-N/8": 2})
    monkeypatch.setattr(speed, "SIDE", 64)
    rows = speed.speeds(rounds=1)
    assert [(row["precision"], row["what"]) for row in rows] == [
        (precision, what)
        for precision in ("float32", "bfloat16")
        for what in ("training", "training, saving", "inference")
    ]
    for row in rows:
        assert row["ratio"] == row["torchdeq, s"] / row["deqgen, s"] > 0
        shares = row["deqgen, % of matrix rate"] / row["torchdeq, %"]
        assert shares == pytest.approx(row["ratio"])
