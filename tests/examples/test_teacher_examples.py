"""examples/train_teacher.py and examples/measure_teacher.py, run small."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen.teachers import Guidance, Sampler, load_teacher
from tests.examples.running import here

pytestmark = pytest.mark.timeout(300)


def archive(path: Path, side: int = 32, count: int = 12) -> Path:
    generator = np.random.default_rng(0)
    labels = [[f"{i}.png", i % 10] for i in range(count)]
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("dataset.json", json.dumps({"labels": labels}))
        for name, _ in labels:
            buffer = io.BytesIO()
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, format="png")
            stored.writestr(str(name), buffer.getvalue())
    return path


SMALL = ("--batch-size", 4, "--no-compile", "--precision", "float32", "--threads", 1)


def test_a_teacher_is_trained_continued_and_measured(tmp_path: Path) -> None:
    data = archive(tmp_path / "d.zip")
    common = ("--data", data, "--output-dir", tmp_path / "t", *SMALL)
    for images in (8, 12):
        done = here("train_teacher.py", *common, "--images", images)
        assert done.returncode == 0, done.stderr
        assert f"{images} images" in done.stdout
    teacher = load_teacher(tmp_path / "t" / "teacher.safetensors")
    shipped = load_teacher("cifar10-small")
    assert (teacher.name, teacher.num_classes) == ("cifar10-small", 10)
    assert (teacher.sampler, teacher.guidance) == (shipped.sampler, shipped.guidance)
    measured = here(
        "measure_teacher.py",
        *("--teacher", tmp_path / "t" / "teacher.safetensors", "--scales", 1, 3),
        *("--interval", 0.3, 5, "--count", 4, "--output-dir", tmp_path / "m"),
    )
    assert measured.returncode == 0, measured.stderr
    plain, guided = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert plain["nfe"] == 12 < guided["nfe"] < 24
    assert (tmp_path / "m" / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["GET-N/8", "DEQ-UNet-T"])
def test_an_equilibrium_model_is_trained_as_a_diffusion_model(name: str, tmp_path: Path) -> None:
    data, folder = archive(tmp_path / "d.zip"), tmp_path / "t"
    common = ("--data", data, "--output-dir", folder, "--model", name, *SMALL)
    done = here("train_teacher.py", *common, "--batch-size", 2, "--images", 4)
    assert done.returncode == 0, done.stderr
    two = Sampler(steps=2)
    teacher = load_teacher(folder / "teacher.safetensors", sampler=two, guidance=Guidance(scale=2))
    assert (teacher.name, teacher.num_classes, teacher.nfe) == (name, 10, 6)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (teacher.sample(noise, torch.tensor([label])) for label in (1, 2))
    assert one.shape == (1, 3, 32, 32) and one.isfinite().all()
    assert not torch.equal(one, other)
    again = here(
        "train_teacher.py",
        *("--data", data, "--output-dir", tmp_path / "u", *SMALL, "--images", 4),
        *("--init", folder / "teacher.safetensors"),
    )
    assert again.returncode == 1
    assert "is a teacher of another model" in again.stderr


def test_a_run_can_start_from_the_weights_of_a_teacher(tmp_path: Path) -> None:
    data = archive(tmp_path / "d.zip")
    done = here(
        "train_teacher.py",
        *("--data", data, "--output-dir", tmp_path / "t", *SMALL),
        *("--images", 4, "--init", "cifar10-small", "--learning-rate", 1e-12),
    )
    assert done.returncode == 0, done.stderr
    first = load_teacher("cifar10-small").denoiser
    second = load_teacher(tmp_path / "t" / "teacher.safetensors").denoiser
    assert isinstance(first, torch.nn.Module) and isinstance(second, torch.nn.Module)
    for old, new in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(old, new)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    small, good = archive(tmp_path / "small.zip", side=16, count=4), archive(tmp_path / "d.zip")
    for arguments, message in (
        (("--data", tmp_path / "none.zip"), "there is no image archive at"),
        (("--data", small), "have shape (3, 16, 16), not (3, 32, 32)"),
        (("--data", small, "--images", 0), "images must be at least 1"),
        (
            ("--data", good, "--model", "DEQ-UNet-X"),
            "unknown model 'DEQ-UNet-X'. Did you mean 'DEQ-UNet",
        ),
    ):
        done = here("train_teacher.py", *arguments, "--output-dir", tmp_path / "t")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert message in done.stderr, done.stderr
    done = here("measure_teacher.py", "--teacher", "cifar", "--output-dir", tmp_path / "m")
    assert done.returncode == 1
    assert "Available: cifar10-small" in done.stderr
