"""Models on disk."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deqgen.models import ModelFileError, create_model, load_model, save_model
from deqgen.models.files import write_weights
from tests.models.test_behaviour import LABEL, noise, small


@pytest.mark.parametrize("name", ["GET", "ViT"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_there_and_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = small(name).to(dtype).eval()
    path = save_model(model, tmp_path / "new" / "model.safetensors")
    again = load_model(path)
    assert again.config == model.config
    assert not again.training
    assert {p.dtype for p in again.parameters()} == {dtype}
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained == [key for key, p in again.named_parameters() if p.requires_grad]
    with torch.no_grad():
        assert torch.equal(again(noise(), LABEL).image, model(noise(), LABEL).image)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.safetensors"]


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    path = save_model(small(), tmp_path / "model.safetensors")
    before = torch.get_rng_state()
    load_model(path)
    assert torch.equal(before, torch.get_rng_state())


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    model = small()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    save_model(averaged, tmp_path / "a.safetensors")
    save_model(torch.compile(model, backend="eager"), tmp_path / "b.safetensors")
    a, b = (load_file(tmp_path / f"{n}.safetensors") for n in "ab")
    assert set(a) == set(b) == set(model.state_dict())
    with pytest.raises(TypeError, match="got Linear"):
        save_model(nn.Linear(2, 2), tmp_path / "c.safetensors")


def test_a_model_can_be_saved_over_itself(tmp_path: Path) -> None:
    path = save_model(small(seed=1), tmp_path / "model.safetensors")
    loaded = load_model(path)
    kept = loaded.qkv_inj.weight.clone()
    save_model(small(seed=2), path)
    assert torch.equal(loaded.qkv_inj.weight, kept)
    assert not torch.equal(load_model(path).qkv_inj.weight, kept)


def damage(path: Path, how: str) -> None:
    header = path.with_suffix(".json")
    content: dict[str, Any] = json.loads(header.read_text())
    tensors = load_file(path)
    if how == "no weights":
        path.unlink()
    elif how == "no config":
        header.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "not json":
        header.write_text("{")
    elif how == "format":
        header.write_text(json.dumps({**content, "format": 99}))
    elif how == "list":
        header.write_text("[]")
    elif how == "architecture":
        header.write_text(json.dumps({**content, "architecture": "GETT"}))
    elif how == "field":
        content["config"]["widht"] = 3
        header.write_text(json.dumps(content))
    elif how == "width":
        content["config"]["width"] = 64
        header.write_text(json.dumps(content))
    elif how == "depth":
        content["config"]["depth"] = 3
        header.write_text(json.dumps(content))
    elif how == "missing":
        save_file({k: v for k, v in tensors.items() if k != "qkv_inj.weight"}, path)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("no weights", FileNotFoundError, "model.safetensors"),
        ("no config", FileNotFoundError, "model.json is missing"),
        ("truncated", ModelFileError, "damaged"),
        ("not json", ModelFileError, "is not JSON"),
        ("format", ModelFileError, "format 99"),
        ("list", ModelFileError, "format 'list'"),
        ("architecture", ModelFileError, "Did you mean 'GET'"),
        ("field", ModelFileError, "Did you mean 'width'"),
        ("width", ModelFileError, r"should have shape \(.*64.*the file holds \(.*32"),
        ("depth", ModelFileError, r"missing blocks\.2.* and 8 more; unexpected nothing"),
        ("missing", ModelFileError, r"missing qkv_inj\.weight"),
    ],
)
def test_damaged_files(how: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    path = save_model(small(), tmp_path / "model.safetensors")
    damage(path, how)
    with pytest.raises(error, match=says):
        load_model(path)


def test_only_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.safetensors file"):
        save_model(create_model("ViT-N/8"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"\.safetensors file"):
        load_model(tmp_path / "model.pt")


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"a": whole, "b": whole, "part": whole[1], "turned": whole.t(), "none": whole[:0]}
    write_weights(tensors, tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_weights({"a": torch.zeros(10)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_weights({"a": torch.ones(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert torch.equal(load_file(path)["a"], torch.zeros(10))
