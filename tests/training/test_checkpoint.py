"""Numbered checkpoints: what is in them, which are kept, what damage is noticed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deqgen.cli import _MISTAKES
from deqgen.models import GET, GenerativeModel, GETConfig, UnsavableError, load_model
from deqgen.training import CheckpointError, Checkpoints, CheckpointWarning, Ema
from tests.training.saver import model_of, save

FILES = ["state.pt", "model.safetensors", "ema.safetensors", "manifest.json"]


def folders(directory: Path) -> list[int]:
    names = os.listdir(directory / "checkpoints")
    assert not [name for name in names if name.startswith(".")], names
    return sorted(int(name) for name in names if name != "latest")


def flip(path: Path) -> None:
    """Change a byte in the middle; a second time does not mend it."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] = (content[middle] + 1) % 256
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def check(directory: Path, images: int) -> None:
    """The checkpoint that is found is the one of ``images``, and holds what was saved."""
    loaded = Checkpoints(directory).load()
    assert loaded is not None and loaded.images == images and int(loaded.path.name) == images
    assert loaded.state["images"] == images and float(loaded.state["momentum"][-1]) == images
    for weights in (loaded.model, loaded.ema):
        model_of(0).load_state_dict(weights)
        assert all(bool((weight == images).all()) for weight in weights.values())


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new" / "run")
    assert checkpoints.load() is None and checkpoints.newest() is None
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    ema = Ema(model, half_life=10)
    state = {"optimizer": optimizer.state_dict(), "config": {"betas": (0.9, 0.99)}, "losses": [1.5]}
    path = checkpoints.save(12_800, state, model, ema.model)
    assert path == tmp_path / "new" / "run" / "checkpoints" / "000000012800"
    loaded = checkpoints.load()
    assert loaded is not None and loaded.path == path == checkpoints.newest()
    assert loaded.images == 12_800 and loaded.state["config"] == {"betas": (0.9, 0.99)}
    saved = loaded.state["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(saved, optimizer.state_dict()["state"][0]["exp_avg"])
    assert torch.equal(loaded.model["weight"], model.weight)
    assert loaded.model["weight"].dtype == torch.float64
    assert loaded.ema["weight"].dtype == torch.float32


def test_the_newest_are_kept_and_latest_leads_to_the_last(tmp_path: Path) -> None:
    for images in (0, 100, 200, 300):
        path = save(tmp_path, 2, images)
        assert (tmp_path / "checkpoints" / "latest").resolve() == path
    assert folders(tmp_path) == [200, 300]
    assert os.readlink(tmp_path / "checkpoints" / "latest") == "000000000300"
    save(tmp_path, 1, 2**40)
    assert folders(tmp_path) == [2**40]
    check(tmp_path, 2**40)


def test_files_may_be_read_by_whom_the_umask_lets_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1, 100)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
    assert path.stat().st_mode & 0o777 == 0o750


def small() -> GenerativeModel:
    return GET(GETConfig(width=16, heads=2, depth=1, deq_depth=1, image_size=8))


def test_the_average_of_a_model_is_a_model_file(tmp_path: Path) -> None:
    model = small()
    path = Checkpoints(tmp_path).save(100, {}, model, Ema(model, half_life=1).model)
    again = load_model(path / "ema.safetensors")
    assert again.config == model.config
    weights = model.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in again.state_dict().items())
    flip(path / "ema.json")
    with pytest.raises(CheckpointError, match=r"ema\.json"):
        Checkpoints(tmp_path).load()


def test_a_model_that_json_cannot_describe_is_saved_by_its_weights(tmp_path: Path) -> None:
    model = small()

    def refuse() -> None:
        raise UnsavableError("a function")

    model.saved_config = refuse  # type: ignore[assignment]
    path = Checkpoints(tmp_path).save(100, {}, model, model)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None and loaded.ema.keys() == model.state_dict().keys()


def test_tied_and_scattered_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].weight = nn.Parameter(model[0].weight.detach().t())  # other strides, same memory
    model.register_buffer("wide", torch.ones(1).expand(5))
    Checkpoints(tmp_path).save(100, {}, model, model)
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None
    for weights in (loaded.model, loaded.ema):
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    name: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    save(tmp_path, 2, 100)
    harm(save(tmp_path, 2, 200) / name)
    with pytest.warns(CheckpointWarning, match=f"000000000200.*{name}.*back to 000000000100"):
        check(tmp_path, 100)
    harm(tmp_path / "checkpoints" / "000000000100" / name)
    for find in (Checkpoints(tmp_path).load, Checkpoints(tmp_path).newest):
        with pytest.raises(
            CheckpointError, match=f"none|no checkpoint .*0200.*{name}.*0100.*{name}"
        ):
            find()


def test_every_flipped_byte_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    manifest = save(tmp_path, 1, 100) / "manifest.json"
    content = manifest.read_bytes()
    for at in range(len(content)):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 0x11]) + content[at + 1 :])
        with pytest.raises(CheckpointError):
            Checkpoints(tmp_path).newest()
    manifest.write_bytes(content)
    check(tmp_path, 100)


def test_a_damaged_newer_one_does_not_count_as_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 100)
    flip(save(tmp_path, 2, 200) / "state.pt")
    save(tmp_path, 2, 300)
    assert folders(tmp_path) == [100, 200, 300]  # else 300 would be the only whole one
    save(tmp_path, 2, 400)
    assert folders(tmp_path) == [300, 400]


def test_going_on_behind_a_damaged_one_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 100)
    flip(save(tmp_path, 2, 300) / "ema.safetensors")
    with pytest.warns(CheckpointWarning, match="0300"):
        check(tmp_path, 100)
    save(tmp_path, 1, 200)
    assert folders(tmp_path) == [200, 300]
    save(tmp_path, 1, 300)
    assert folders(tmp_path) == [300]
    check(tmp_path, 300)


def test_a_whole_one_is_not_written_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 100)
    with pytest.raises(FileExistsError, match="000000000100 is there already"):
        save(tmp_path, 1, 100)
    check(tmp_path, 100)
    assert folders(tmp_path) == [100]


def test_a_renamed_checkpoint_and_one_of_another_release(tmp_path: Path) -> None:
    path = save(tmp_path, 1, 100)
    with pytest.raises(CheckpointError, match="is of 100 images, not what its name says"):
        Checkpoints(
            shutil.copytree(path, tmp_path / "b/checkpoints/000000000200").parents[1]
        ).load()
    (path / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(CheckpointError, match="has format 2; this release reads format 1"):
        Checkpoints(tmp_path).load()


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def rewritten(path: Path, **changes: Any) -> None:
    """A manifest whose checksums fit, as somebody else could make one."""
    body = {**json.loads((path / "manifest.json").read_text()), **changes}
    del body["sha256"]
    for name, line in body["files"].items() if "files" not in changes else ():
        content = (path / name).read_bytes()
        line.update(size=len(content), sha256=sha256(content).hexdigest())
    digest = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**body, "sha256": digest}, indent=2) + "\n"
    (path / "manifest.json").write_text(text)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1, 100)
    rewritten(path)
    check(tmp_path, 100)
    torch.save({"images": Payload()}, path / "state.pt")
    rewritten(path)
    with pytest.raises(CheckpointError, match=r"state\.pt is (refused|damaged)"):
        Checkpoints(tmp_path).load()
    (path / "state.pt").write_bytes(pickle.dumps(Payload()))
    rewritten(path)
    with pytest.raises(CheckpointError, match=r"state\.pt is (refused|damaged)"):
        Checkpoints(tmp_path).load()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"files": []},
        {"files": {"state.pt": 3}},
        {"files": {"state.pt": {}}},
        {"files": {"../../../x": {"size": 0, "sha256": ""}}},
        {"images": "100"},
        {"images": None},
    ],
    ids=str,
)
def test_a_made_up_manifest(changes: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, 1, 100)
    rewritten(path, **changes)
    if changes == {"images": "100"}:  # of another type, and still what it says
        return check(tmp_path, 100)
    with pytest.raises(CheckpointError, match="000000000100"):
        Checkpoints(tmp_path).load()


def test_weights_that_are_none(tmp_path: Path) -> None:
    path = save(tmp_path, 1, 100)
    (path / "model.safetensors").write_bytes(b"none")
    rewritten(path)
    with pytest.raises(CheckpointError, match=r"the weights in .* cannot be read"):
        Checkpoints(tmp_path).load()


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="images must not be negative, got -1"):
        save(tmp_path, 1, -1)


def test_the_command_line_takes_a_damaged_checkpoint_for_a_mistake() -> None:
    assert issubclass(CheckpointError, _MISTAKES)


def test_other_things_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(tmp_path, 1, 100)
    (folder / "notes.txt").write_text("mine")
    (folder / ".mine.tmp").write_text("mine")
    (folder / "000000000999").write_text("a file")
    save(tmp_path, 1, 200)
    assert sorted(os.listdir(folder)) == [
        ".mine.tmp", "000000000200", "000000000999", "latest", "notes.txt"
    ]  # fmt: skip
    with pytest.raises(FileExistsError):
        save(tmp_path, 1, 999)
    assert torch.equal(
        load_file(folder / "latest" / "ema.safetensors")["bias"], torch.full((40,), 200.0)
    )
