"""The ImageNet flagship: the whole path on a tiny teacher, as a stranger runs it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from deqgen import generate
from deqgen.data import PairDataset, iterate_image_zip, write_image_zip
from deqgen.models import load_model
from deqgen.teachers import Sampler, Teacher
from tests.examples.running import here, start
from tests.teachers.random_pipelines import edit, save_pipelines

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = "distill_imagenet.py"
SHARED = Path(os.environ.get("DEQGEN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
SAMPLE = SHARED / "imagenet-64x64-sample1000.zip"
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("examples")]


def images_of_64(path: Path, count: int = 8, side: int = 64) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    write_image_zip(path, pixels, list(range(count)))
    return path


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The smoke run's; compared with ImageNet where it is there, else with random pixels."""
    path = tmp_path_factory.mktemp("reference") / "images.zip"
    if SAMPLE.is_file():
        images, labels = next(iterate_image_zip(SAMPLE, batch_size=64))
        write_image_zip(path, images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
    else:
        images_of_64(path)
    return ("--preset", "smoke", "--reference", path)


@pytest.fixture(scope="module")
def smoke(
    options: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder and the output of one smoke run that was interrupted while it trained."""
    folder = tmp_path_factory.mktemp("imagenet") / "run"
    child = start(EXAMPLE, *options, "--output-dir", folder)
    while not (folder / "get" / "checkpoints" / "latest").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "the same command continues" in err and "Traceback" not in err
    made = {path: path.stat().st_mtime_ns for path in (folder / "pairs" / "shards").iterdir()}
    done = here(EXAMPLE, *options, "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    return folder, done.stdout


def test_the_files_and_numbers_are_those_of_the_cifar_example(smoke: tuple[Path, str]) -> None:
    folder, out = smoke
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "pairs", "log.csv", "metrics.json", "samples.png", "loss.png"} <= names
    with Image.open(folder / "samples.png") as image:
        assert min(image.size) > 100
    with (folder / "log.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"GET", "ViT"}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["teacher"]["nfe"] == 15
    for model in ("teacher", "get", "vit"):
        assert metrics[model]["fd_box32"] > 0
        assert "64x64 averaged to 32x32" in metrics[model]["reference"]
        assert "fd_cifar10" not in metrics[model] and "accuracy" not in metrics[model]
    for student in ("get", "vit"):
        assert metrics[student]["pair_l1"] > 0
    assert metrics["vit"]["gmacs"] >= metrics["get"]["gmacs"]
    for text in ("fd_box32", "averaged to 32x32", "it is not FID", str(folder / "samples.png")):
        assert text in out


def test_the_teacher_is_an_adm_of_1000_classes_and_so_is_the_student(
    smoke: tuple[Path, str],
) -> None:
    folder, _ = smoke
    pairs = PairDataset(folder / "pairs")
    assert pairs.num_classes == 1000
    assert pairs[0]["image"].shape == (3, 64, 64)
    model = load_model(folder / "student.safetensors")
    assert (model.config.num_classes, model.config.image_size) == (1000, 64)
    assert generate(model, [1, 2], [999, 0]).shape == (2, 3, 64, 64)


def test_the_same_command_again_shows_the_same_table(
    smoke: tuple[Path, str], options: tuple[object, ...]
) -> None:
    done = here(EXAMPLE, *options, "--output-dir", smoke[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout == smoke[1]


class Shrink(nn.Module):
    """The best denoiser of latents that are normal with a deviation of one half."""

    def __init__(self) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return x * (self.variance / (self.variance + sigma.reshape(-1, 1, 1, 1) ** 2))


def teacher(shape: tuple[int, int, int]) -> Teacher:
    return Teacher(Shrink(), image_shape=shape, sampler=Sampler(steps=12), name="shrink")


def distil(monkeypatch: pytest.MonkeyPatch, made: Teacher | None, **values: Any) -> None:
    """Run the example in this process, with another teacher."""
    import distill_imagenet

    if made is not None:
        monkeypatch.setattr(distill_imagenet, "find_teacher", lambda *_: made)
    options = distill_imagenet.Options(**{"preset": "smoke", "images": 4, **values})
    distill_imagenet.main(distill_imagenet.ImageNet(options), options)


def test_latents_stay_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distil(monkeypatch, teacher((4, 32, 32)), output_dir=tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["get"]["pair_l1"] > 0 and "fd_box32" not in metrics["get"]
    out = capsys.readouterr().out
    assert "These are latents" in out and "fd_box32" not in out
    pairs = PairDataset(tmp_path / "pairs", decode=False)
    assert pairs[0]["image"].dtype == torch.float16
    assert load_model(tmp_path / "student.safetensors").config.channels == 4
    with Image.open(tmp_path / "samples.png") as image:
        assert min(image.size) > 100


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers", reason="an extra: deqgen[diffusers]")
    folder = tmp_path_factory.mktemp("pipelines")
    save_pipelines(diffusers, folder)
    return folder


def test_the_latents_of_a_dit(pipelines: Path, tmp_path: Path) -> None:
    """A pipeline as diffusers saves it: guided, with a learned variance, in classes."""
    arguments = ("--teacher", f"diffusers:{pipelines / 'dit'}", "--preset", "smoke")
    done = here(EXAMPLE, *arguments, "--images", 8, "--output-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "These are latents" in done.stdout and "fd_box32" not in done.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["get"]["pair_l1"] > 0
    pairs = PairDataset(tmp_path / "run" / "pairs", decode=False)
    assert pairs[0]["image"].shape == (4, 8, 8) and pairs[0]["image"].dtype == torch.float16
    assert load_model(tmp_path / "run" / "student.safetensors").config.num_classes == 5


def test_latents_of_three_channels_are_no_images(pipelines: Path, tmp_path: Path) -> None:
    """As those of a VQ autoencoder, which is enough to tell: its weights are never read."""
    folder = shutil.copytree(pipelines / "unet", tmp_path / "ldm")
    arguments = ("--teacher", f"diffusers:{folder}", "--preset", "smoke")
    done = here(EXAMPLE, *arguments, "--output-dir", tmp_path / "image")
    assert done.returncode == 1 and "averages images to 32x32" in done.stderr
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    done = here(EXAMPLE, *arguments, "--images", 4, "--output-dir", tmp_path / "latent")
    assert done.returncode == 0, done.stderr
    assert "These are latents" in done.stdout
    pairs = PairDataset(tmp_path / "latent" / "pairs", decode=False)
    assert pairs[0]["image"].shape == (3, 8, 8) and pairs[0]["image"].dtype == torch.float16


def test_without_a_reference_it_is_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distil(monkeypatch, teacher((3, 64, 64)), output_dir=tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["teacher"]["fd_box32"] == pytest.approx(0, abs=1e-6)
    assert metrics["get"]["fd_box32"] > 1
    assert metrics["get"]["reference"] == "these 4 images of the teacher"
    assert "compared with these 4 images of the teacher; it is not FID" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        (
            {"preset": "demo"},
            None,
            "needs a teacher: --teacher edm-imagenet64-cond-adm",
        ),
        ({"preset": "papre"}, None, "Did you mean 'paper'?"),
        ({"teacher": "a/none.safetensors"}, None, "no teacher file at a/none.safetensors"),
        ({"reference": Path("none.zip")}, (3, 64, 64), "there is no image archive at none.zip"),
        ({"reference": Path("none.npz")}, (3, 64, 64), "no file of statistics at none.npz"),
        ({"reference": Path("none.zip")}, (4, 32, 32), "makes latents of shape (4, 32, 32)"),
        ({}, (3, 48, 48), "averages images to 32x32 to measure them"),
    ],
    ids=["demo", "preset", "file", "zip", "npz", "latents", "size"],
)
def test_bad_input_is_one_sentence(
    values: dict[str, Any],
    shape: tuple[int, int, int] | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        distil(monkeypatch, teacher(shape) if shape else None, **values)
    assert message in str(stopped.value)
    assert str(stopped.value).startswith("distill_imagenet: ")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Churned:
    """A stochastic teacher and its sampler, as far as the example looks."""

    stochastic: bool = True
    churn: float | None = 40
    steps: int = 256

    @property
    def sampler(self) -> Churned:
        return self

    def replace(self, sampler: Churned) -> Churned:
        return sampler


def test_a_sampler_that_adds_noise_is_replaced() -> None:
    from distill_imagenet import deterministic

    assert deterministic(Churned()) == Churned(churn=None, steps=40)
    assert deterministic(Churned(stochastic=False)) == Churned(stochastic=False)
