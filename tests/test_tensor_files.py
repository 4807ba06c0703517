"""Files of tensors: what is in them, or one sentence of the caller's kind."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deqgen.tensor_files import read_tensor_file


class Wrong(ValueError):
    pass


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm-was-done",)


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
def test_what_was_written_comes_back(mapped: bool, tmp_path: Path) -> None:
    content = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, dtype=torch.int64)}
    save_file(content, tmp_path / "a.safetensors")
    torch.save(content, tmp_path / "a.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pth", "old.pth"):
        found = read_tensor_file(tmp_path / name, Wrong, mapped=mapped)
        assert found.keys() == content.keys()
        for key, tensor in content.items():
            assert torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype


@pytest.mark.parametrize("mapped", [False, True], ids=["read", "mapped"])
def test_what_is_damaged_or_means_harm_is_one_sentence(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(9)}, "whole.pth")
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:-50])
    Path("empty.pth").touch()
    Path("odd.safetensors").write_bytes(b"odd")
    torch.save({"a": Harm()}, "harm.pth")
    Path("harm.pkl").write_bytes(pickle.dumps(Harm(), protocol=2))
    for name in ("cut.pth", "empty.pth", "odd.safetensors", "harm.pth", "harm.pkl"):
        with pytest.raises(Wrong, match=f"^{name} is (damaged|refused)") as said:
            read_tensor_file(Path(name), Wrong, mapped=mapped)
        assert "\n" not in str(said.value)
        assert ("no code of it was run" in str(said.value)) == name.startswith("harm")
    assert not Path("harm-was-done").exists()
    with pytest.raises(FileNotFoundError):
        read_tensor_file(Path("none.pth"), Wrong, mapped=mapped)
