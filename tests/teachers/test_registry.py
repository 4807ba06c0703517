from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deqgen.teachers import (
    Guidance,
    Karras,
    Sampler,
    Teacher,
    TeacherError,
    available_teachers,
    load_teacher,
    register_architecture,
    register_teacher,
    registry,
    save_teacher,
)
from deqgen.teachers.edm import EDMDenoiser

METADATA = {
    "name": "tiny",
    "sampler": Sampler(steps=4, schedule=Karras(sigma_max=40.0)),
    "guidance": Guidance(scale=2.0, interval=(0.1, 9.0)),
    "class_names": ["a", "b", "c", "d"],
    "card": {"images_seen": 12},
}


@pytest.fixture
def file(tmp_path: Path, denoiser: EDMDenoiser) -> Path:
    path = tmp_path / "deep" / "tiny.safetensors"
    save_teacher(denoiser, path, METADATA)
    return path


def edit_header(path: Path, **changes: object) -> None:
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()[registry.METADATA_KEY])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    header.update(changes)
    header = {key: value for key, value in header.items() if value != "REMOVE"}
    save_file(tensors, path, metadata={registry.METADATA_KEY: json.dumps(header)})


def test_a_saved_teacher_comes_back(file: Path, denoiser: EDMDenoiser) -> None:
    teacher = load_teacher(file)
    assert teacher.name == "tiny" and teacher.class_names == ("a", "b", "c", "d")
    assert teacher.sampler == METADATA["sampler"] and teacher.guidance == METADATA["guidance"]
    assert teacher.image_shape == (3, 8, 8) and teacher.num_classes == 4
    assert isinstance(teacher.denoiser, EDMDenoiser)
    for mine, other in zip(teacher.denoiser.parameters(), denoiser.parameters(), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other.half().float(), rtol=0, atol=0)
    noise = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    label = torch.tensor([1, 2])
    original = teacher.replace(denoiser=denoiser).sample(noise, label)
    torch.testing.assert_close(teacher.sample(noise, label), original, rtol=0.02, atol=0.02)


def test_a_file_stores_half_precision_and_leaves_no_partial_one(
    file: Path, denoiser: EDMDenoiser
) -> None:
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    assert 2 * parameters < file.stat().st_size < 2 * parameters + 20_000
    assert [path.name for path in file.parent.iterdir()] == ["tiny.safetensors"]


def test_options_replace_the_files(file: Path) -> None:
    teacher = load_teacher(str(file), guidance=None, sampler=Sampler(steps=2), precision="bfloat16")
    assert teacher.nfe == 3 and teacher.precision == "bfloat16"
    with pytest.raises(TypeError, match="Did you mean 'precision'"):
        load_teacher(file, precison="bfloat16")
    with pytest.raises(ValueError, match="unknown precision 'half'"):
        load_teacher(file, precision="half")


def test_names(file: Path) -> None:
    assert "cifar10-small" in available_teachers()
    with pytest.raises(ValueError, match=r"Did you mean 'cifar10-small'.*Available: .*cifar10"):
        load_teacher("cifar10-smal")
    register_teacher("mine", lambda **options: load_teacher(file, **options))
    try:
        assert load_teacher("mine", guidance=None).nfe == 7
    finally:
        del registry.TEACHERS["mine"]


def test_a_folder_does_not_hide_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10-small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_teacher("cifar10-small").name == "cifar10-small"
    for folder in (Path("cifar10-small"), "./cifar10-small"):
        with pytest.raises(TeacherError, match=r"model_index\.json"):
            load_teacher(folder)


def test_what_looks_like_something_else_is_told(file: Path) -> None:
    for url in ("https://example.com/x.safetensors", "https://example.com/x.pkl?download=1"):
        with pytest.raises(ValueError, match=re.escape(f"got {url!r}")):
            load_teacher(url)
    with pytest.raises(TeacherError, match=r"on the Hugging Face Hub is 'diffusers:me/ddpm-v1\.5'"):
        load_teacher("me/ddpm-v1.5")
    with pytest.raises(TeacherError, match=r"there is no teacher file at a/b.safetensors$"):
        load_teacher("a/b.safetensors")
    for name in (file, "cifar10-small"):
        with pytest.raises(TypeError, match="unknown option of a teacher 'denoiser'"):
            load_teacher(name, denoiser=None)


def test_a_registered_architecture_can_be_saved_and_loaded(tmp_path: Path) -> None:
    class Halver(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor))

        def forward(
            self, x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None = None
        ) -> torch.Tensor:
            return x * self.factor

    path = tmp_path / "halver.safetensors"
    register_architecture("halver", lambda config: Halver(config["factor"]))
    try:
        metadata = {
            "name": "halver",
            "architecture": "halver",
            "config": {"factor": 0.0},
            "image_shape": [1, 2, 2],
            "num_classes": 0,
        }
        save_teacher(Halver(0.5), path, metadata)
        teacher = load_teacher(path)
    finally:
        del registry.ARCHITECTURES["halver"]
    assert isinstance(teacher, Teacher) and teacher.nfe == 35
    noise = torch.ones(1, 1, 2, 2)
    expected = teacher.replace(denoiser=Halver(0.5)).sample(noise)
    torch.testing.assert_close(teacher.sample(noise), expected)


def test_missing_truncated_and_foreign_files(file: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"there is no teacher file at .*gone.safetensors"):
        load_teacher(tmp_path / "gone.safetensors")
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(TeacherError, match="is truncated or damaged"):
            load_teacher(file)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(TeacherError, match="not one that save_teacher wrote"):
        load_teacher(file)
    with pytest.raises(TeacherError, match=r"model_index\.json"):  # a folder is a pipeline
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2; this release reads 1"),
        ({"version": "REMOVE"}, "does not name its version"),
        ({"architecture": "edm-unett"}, "Did you mean 'edm-unet'"),
        ({"config": {"image_size": 8, "width": [16]}}, "Did you mean 'widths'"),
        ({"config": {"image_size": 7}}, "image_size 7 must be divisible"),
        ({"config": {"image_size": 8}}, "Error"),
        ({"sampler": {"steps": 0}}, "steps must be at least 1"),
        ({"guidance": {"strength": 2}}, "strength"),
        ({"image_shape": "REMOVE"}, "does not name its image_shape"),
    ],
)
def test_a_header_that_does_not_fit_gets_one_sentence(
    file: Path, changes: dict[str, object], words: str
) -> None:
    edit_header(file, **changes)
    with pytest.raises(TeacherError, match=words) as caught:
        load_teacher(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_cannot_be_saved_is_refused(tmp_path: Path, denoiser: EDMDenoiser) -> None:
    with pytest.raises(ValueError, match="also needs name"):
        save_teacher(denoiser, tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match="also needs architecture, config, image_shape"):
        save_teacher(nn.Linear(1, 1), tmp_path / "a.safetensors", {"name": "x"})
    with torch.no_grad():
        next(denoiser.parameters()).fill_(1e6)
    with pytest.raises(ValueError, match=r"is not finite in torch\.float16"):
        save_teacher(denoiser, tmp_path / "a.safetensors", METADATA)
    assert not list(tmp_path.iterdir())
