"""Every way to name a model leads to it, or to a sentence about what was looked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.models import GenerativeModel, ModelFileError, open_model, save_model
from deqgen.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning
from tests.models.test_behaviour import small


def seed_of(model: GenerativeModel) -> int:
    """Which of the small models it is."""
    weight = model.state_dict()["final_layer.linear.weight"]
    for seed in (1, 2, 3):
        if torch.equal(weight, small(seed=seed).state_dict()["final_layer.linear.weight"]):
            return seed
    raise AssertionError("none of them")


def checkpoint(run: Path, images: int, ema: int) -> Path:
    """A checkpoint whose raw weights are those of model 3."""
    return Checkpoints(run).save(images, {"step": 1}, small(seed=3), small(seed=ema))


def test_a_file_and_a_folder(tmp_path: Path) -> None:
    save_model(small(seed=1), tmp_path / "a.safetensors")
    small(seed=2).save_pretrained(tmp_path / "folder")
    assert seed_of(open_model(tmp_path / "a.safetensors")) == 1
    assert seed_of(open_model(str(tmp_path / "folder"))) == 2
    model = open_model(tmp_path / "folder", max_steps=3, solver="anderson")
    assert not model.training
    assert model.config.max_steps == 3 and model.config.solver == "anderson"


def test_a_run_is_the_average_of_its_newest_checkpoint(tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 9_000, 1), checkpoint(tmp_path, 12_800, 2)
    (tmp_path / "checkpoints" / ".000000099999.0123abcd.tmp").mkdir()  # killed while written
    (tmp_path / "config.json").write_text("{}")  # of the run, not of a model
    for name in (tmp_path, tmp_path / "checkpoints", newer, tmp_path / "checkpoints" / "latest"):
        assert seed_of(open_model(name)) == 2
    assert seed_of(open_model(older)) == 1
    with pytest.raises(TypeError, match="max_step"):
        open_model(tmp_path, max_step=3)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    older, newest = checkpoint(tmp_path, 9_000, 1), checkpoint(tmp_path, 12_800, 2)
    weights = newest / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.warns(CheckpointWarning, match=r"ema\.safetensors .* going back to 000000009000"):
        assert seed_of(open_model(tmp_path)) == 1
    (older / "ema.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*000000012800"):
        open_model(tmp_path)


def test_a_checkpoint_by_its_own_name_is_held_against_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path, 9_000, 1)
    copy = tmp_path / "best"
    shutil.copytree(path, copy)
    (copy / "state.pt").unlink()  # of which nothing is needed
    assert seed_of(open_model(copy)) == 1
    monkeypatch.chdir(path.parent)
    assert seed_of(open_model(".")) == 1
    weights = path / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    for name in (path, path.parent / "latest", path.parent, "."):
        with pytest.raises(CheckpointError, match=r"the SHA-256 of ema\.safetensors is not"):
            open_model(name)
    (path / "manifest.json").unlink()  # a folder of two files: nothing to hold it against
    open_model(path)


def test_a_name_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(seed=2).save_pretrained(tmp_path / "cache")
    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        return str(tmp_path / "cache")

    monkeypatch.setattr("deqgen.models.hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert seed_of(open_model("someone/get-small")) == 2
    assert asked == ["someone/get-small"]
    small(seed=1).save_pretrained("someone/get-small")  # what exists here goes before the Hub
    assert seed_of(open_model("someone/get-small")) == 1
    assert asked == ["someone/get-small"]


@pytest.mark.parametrize(
    "name", ["missing.safetensors", "./missing", "/missing", "a/b/c", "runs/", "", "get small"]
)
def test_what_is_no_path_and_no_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = FileNotFoundError
    with pytest.raises(error, match=r"there is no model at|holds no model: looked for"):
        open_model(name)


def test_folders_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"looked for model\.safetensors .*checkpoints/"):
        open_model(tmp_path)
    save_model(small(), tmp_path / "student.safetensors")
    with pytest.raises(FileNotFoundError, match=r"It holds student\.safetensors: name the file"):
        open_model(tmp_path)
    (tmp_path / "get.pth").touch()
    with pytest.raises(ModelFileError, match=r"get\.pth is no \.safetensors file; `deqgen "):
        open_model(tmp_path / "get.pth")
