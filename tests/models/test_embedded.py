"""The student that ships with the package: small, the same images everywhere, with a true card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.evaluation import evaluate_model
from deqgen.models import (
    UnknownModelError,
    embedded_models,
    open_model,
    parameter_count,
    save_model,
)
from deqgen.sampling import generate
from tests.models.test_behaviour import small

NAME = "get-nano-cifar10"
ASSET = Path(__file__).resolve().parents[2] / "deqgen" / "assets" / "get_nano_cifar10.safetensors"
CARD = ASSET.with_suffix(".md").read_text(encoding="utf-8")

# Of the images of seeds 0 to 9, one class each: mean, standard deviation, and the mean square of
# the differences of neighbours. Of new weights these are other numbers: write them anew here.
RECORDED = (-0.060683, 0.531233, 0.031981)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("deqgen.models.hub.snapshot_download", refuse)


def test_it_is_small_and_its_images_are_recorded(offline: None) -> None:
    assert NAME in embedded_models()
    assert ASSET.stat().st_size <= 10_000_000
    model = open_model(NAME)
    assert not model.training
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    images = generate(model, range(10), list(range(10)))  # (10, 3, 32, 32)
    rough = images.diff(dim=-1).square().mean()
    found = [float(number) for number in (images.mean(), images.std(), rough)]
    assert found == pytest.approx(RECORDED, abs=2e-4)


def test_the_name_means_the_model_whatever_lies_here(
    offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small().save_pretrained(NAME)
    assert open_model(NAME).config.image_size == 32
    assert open_model(Path(NAME)).config.image_size == 8
    assert open_model(NAME, solver="anderson", max_steps=3).config.solver == "anderson"
    with pytest.raises(TypeError, match="max_step"):
        open_model(NAME, max_step=3)


@pytest.mark.parametrize("name", ["get-nano-cifr10", "GET-NANO-CIFAR10", "get_nano_cifar10"])
def test_a_misspelt_name_is_not_asked_for_on_the_hub(name: str, offline: None) -> None:
    with pytest.raises(UnknownModelError, match=rf"Did you mean '{NAME}'\?.*'owner/{name}'"):
        open_model(name)


def test_a_name_with_an_owner_is_one_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small().save_pretrained(tmp_path)
    monkeypatch.setattr("deqgen.models.hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert open_model(f"me/{NAME}").config.image_size == 8


def test_the_file_is_half_precision(tmp_path: Path) -> None:
    model = open_model(NAME)
    again = save_model(model.half(), tmp_path / "again.safetensors")
    assert again.read_bytes() == ASSET.read_bytes()
    assert again.with_suffix(".json").read_text() == ASSET.with_suffix(".json").read_text()


def test_the_card_says_what_it_is() -> None:
    assert f"{parameter_count(open_model(NAME)):,} parameters" in CARD
    assert f"{ASSET.stat().st_size / 1e6:.1f} MB" in CARD
    student, teacher = measured(NAME), measured("teacher")
    assert teacher < student
    assert f"evaluate {NAME} --count 3072`" in CARD


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::deqgen.evaluation.FewSamplesWarning")
def test_the_card_names_what_is_measured() -> None:
    found = evaluate_model(open_model(NAME), count=3072)
    assert found.metrics["fd_cifar10"] == pytest.approx(measured(NAME), abs=0.05)


def measured(name: str) -> float:
    """The card's ``fd_cifar10``."""
    row = re.search(rf"^\| {name} \| \d+ \| ([\d.]+) \|", CARD, flags=re.MULTILINE)
    assert row is not None
    return float(row[1])
