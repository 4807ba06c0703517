"""``deqgen sample``: the same images in every form, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen import cli
from deqgen.data import ImageZip
from deqgen.data.sample_writers import to_pixels
from deqgen.evaluation.generated import GeneratedImages, Solve
from deqgen.evaluation.label_policy import check_policy, labels_for
from deqgen.models import load_model, save_model
from deqgen.number_list import parse_numbers
from deqgen.sampling import generate, generate_batches
from deqgen_solvers import NewtonKrylov, Tolerance
from tests.models.test_behaviour import small
from tests.test_processes import torchrun

SEEDS = [0, 1, 2, 3, 4, 5, 6, 20]
LABELS = [seed % 5 for seed in SEEDS]
SHOWN = ["--seeds", "0-6,20", "--batch-size", "3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(small(max_steps=12), folder / "get.safetensors")
    save_model(small("ViT", num_classes=None, channels=1), folder / "grey.safetensors")
    save_model(small(num_classes=None, channels=4), folder / "latent.safetensors")
    save_model(small(noise_level=True), folder / "denoiser.safetensors")
    broken = small(num_classes=None)
    with torch.no_grad():
        next(reversed(list(broken.parameters()))).fill_(torch.nan)
    save_model(broken, folder / "nan.safetensors")
    return folder


def sample(model: Path, out: Path, *more: str) -> int:
    return cli.main(["sample", str(model), "--out", str(out), *SHOWN, *more])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("deqgen: ")
    assert captured.err.count("\n") == 1
    return captured.err


def images_in(path: Path) -> np.ndarray:
    """The images of a folder, npz or zip, (N, H, W, 3)."""
    if path.is_dir():
        return np.stack([np.asarray(Image.open(each)) for each in sorted(path.glob("*.png"))])
    if path.suffix == ".zip":
        return ImageZip(path).images.permute(0, 2, 3, 1).numpy()
    with np.load(path) as arrays:
        return arrays["arr_0"]


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for what rounding turns over: a level, here and there."""
    apart = np.abs(found.astype(int) - wanted.astype(int))
    return bool(apart.max() <= 1 and (apart > 0).mean() < 0.01)


def test_every_form_holds_the_images_of_generate(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models / "get.safetensors"
    wanted = to_pixels(generate(load_model(model), SEEDS, LABELS))
    assert wanted.std() > 30
    for name in ("folder", "a.npz", "a.zip", "a.png"):
        assert sample(model, tmp_path / name) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: 8 images of 8x8.\n"
    for name in ("folder", "a.npz", "a.zip"):
        assert close(images_in(tmp_path / name), wanted)
    grid = np.asarray(Image.open(tmp_path / "a.png"))
    rows = grid.reshape(3, 8, 3, 8, 3).transpose(0, 2, 1, 3, 4).reshape(9, 8, 8, 3)
    assert close(rows[:8], wanted) and (rows[8] == 255).all()
    names = [f"{seed:06d}.png" for seed in SEEDS]
    assert sorted(os.listdir(tmp_path / "folder")) == [*names, "samples.json"]
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["arr_1"].tolist() == LABELS
    assert ImageZip(tmp_path / "a.zip").labels.tolist() == LABELS
    assert sample(model, tmp_path / "wide.png", "--columns", "8") == 0
    assert np.asarray(Image.open(tmp_path / "wide.png")).shape == (8, 64, 3)


def test_the_batch_does_not_matter(models: Path, tmp_path: Path) -> None:
    for options in ([], ["--tol", "0.3", "--solver", "anderson"], ["--precision", "bfloat16"]):
        made = []
        for batch_size in ("1", "3", "8"):
            out = tmp_path / f"{len(options)}-{batch_size}-{options[:1]}.npz"
            assert (
                sample(models / "get.safetensors", out, *options, "--batch-size", batch_size) == 0
            )
            made.append(images_in(out))
        assert close(made[0], made[2]) and close(made[1], made[2])


def test_classes(models: Path, tmp_path: Path) -> None:
    for labels, wanted in (
        ("3", [3] * 8),
        ("4,0-1", [(4, 0, 1)[seed % 3] for seed in SEEDS]),
        ("uniform", LABELS),
    ):
        assert (
            sample(models / "get.safetensors", tmp_path / f"{labels}.npz", "--labels", labels) == 0
        )
        with np.load(tmp_path / f"{labels}.npz") as arrays:
            assert arrays["arr_1"].tolist() == wanted
    assert close(images_in(tmp_path / "3.npz")[3:4], images_in(tmp_path / "uniform.npz")[3:4])


def test_a_tolerance_ends_early_and_says_when(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tol", "0.3", "--solver", "picard", "--max-steps", "9"]
    assert sample(models / "get.safetensors", tmp_path / "a.npz", *options) == 0
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert first.endswith("8 images of 8x8.")
    counts = {int(row.split()[0]): int(row.split()[1]) for row in rows}
    mean = sum(taken * count for taken, count in counts.items()) / 8
    assert second == f"Evaluations of the cell a sample: {mean:.2f} on average."
    model, tol = load_model(models / "get.safetensors"), Tolerance(atol=0.0, rtol=0.3)
    wanted = generate(model, SEEDS, LABELS, tol=tol, solver="picard", max_steps=9)
    assert close(images_in(tmp_path / "a.npz"), to_pixels(wanted))
    assert sum(counts.values()) == 8 and max(counts) < 9


def test_grey_images_and_latents(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(models / "grey.safetensors", tmp_path / "grey.npz") == 0
    grey = images_in(tmp_path / "grey.npz")
    assert grey.shape == (8, 8, 8, 3) and (grey == grey[..., :1]).all() and grey.std() > 30
    assert sample(models / "latent.safetensors", tmp_path / "latent.npz") == 0
    with np.load(tmp_path / "latent.npz") as arrays:
        assert arrays.files == ["arr_0"] and arrays["arr_0"].dtype == np.float32
        wanted = generate(load_model(models / "latent.safetensors"), SEEDS).numpy()
        np.testing.assert_allclose(arrays["arr_0"], wanted, atol=1e-5)
    capsys.readouterr()
    assert sample(models / "latent.safetensors", tmp_path / "out") == 2
    assert "gives 4 channels, latents and no pixels: only an .npz keeps them" in told(capsys)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_folder_goes_on(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = models / "get.safetensors"
    assert sample(model, tmp_path / "whole") == 0
    assert sample(model, tmp_path / "out") == 0
    for seed in (1, 5, 20):
        (tmp_path / "out" / f"{seed:06d}.png").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert sample(model, tmp_path / "out") == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    for name, when in times.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == when
    capsys.readouterr()
    assert sample(model, tmp_path / "out", "--max-steps", "2") == 2
    assert "made otherwise: max_steps was None and is now 2" in told(capsys)
    assert sample(models / "grey.safetensors", tmp_path / "out") == 2
    assert "made otherwise: architecture was 'GET' and is now 'ViT'" in told(capsys)
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["labels"] == "uniform"


TOGETHER = """
import sys
from deqgen import cli

model, folder, *options = sys.argv[1:]
for out in ("folder", "a.npz", "a.zip", "a.png", "few.npz"):
    more = ["--seeds", "7"] if out == "few.npz" else []
    assert cli.main(["sample", model, "--out", f"{folder}/{out}", *options, *more]) == 0
"""


def test_two_processes_write_the_files_of_one(models: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TOGETHER)
    options = [*SHOWN, "--tol", "0.3"]
    done = torchrun(tmp_path / "program.py", models / "get.safetensors", tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 images of 8x8.") == 4  # one process speaks
    for name in ("folder", "a.npz", "a.zip", "a.png", "few.npz"):
        more = ["--seeds", "7"] if name == "few.npz" else []
        out = tmp_path / "one" / name
        assert sample(models / "get.safetensors", out, "--tol", "0.3", *more) == 0
        for path in out.iterdir() if out.is_dir() else [out]:
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == other.read_bytes(), path.name
    assert len(os.listdir(tmp_path / "two" / "folder")) == 9


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("get", {"--out": "a.jpg"}, "--out is a folder, or a file that ends in .npz, .zip, .png"),
        ("get", {"--columns": "3"}, "--columns 3: a grid, OUT.png, has them"),
        ("get", {"--out": "a.png", "--columns": "-1"}, "--columns -1: a grid, OUT.png, has them"),
        ("get", {"--batch-size": "0"}, "--batch-size must be at least 1, got 0"),
        ("get", {"--seeds": "1-x"}, "--seeds must be numbers and ranges such as 0-63,100,200-210"),
        ("get", {"--labels": "0-5"}, "labels must lie in 0..4, got 5"),
        ("get", {"--labels": "1,1"}, "labels names 1 twice"),
        ("get", {"--labels": "rndom"}, "unknown label policy 'rndom'. Did you mean 'random'?"),
        ("get", {"--max-steps": "0"}, "max_steps must be at least 1, got 0"),
        ("get", {"--tol": "-1"}, "rtol must be finite and >= 0"),
        ("get", {"--solver": "andersen"}, "anderson"),
        ("get", {"--device": "foo"}, "device 'foo' cannot be used here"),
        ("get", {"--device": "meta"}, "device 'meta' cannot be used here: it holds no numbers"),
        ("get", {"--precision": "half"}, "bfloat16"),
        ("grey", {"--labels": "uniform"}, "this model is unconditional and takes no labels"),
        ("grey", {"--tol": "0.1", "--max-steps": "3"}, "leave out max_steps, tol"),
        ("nan", {}, "the model's image of seed 0 holds NaN or infinity, as do 63 others"),
        ("nan", {"--out": "a.npz"}, "the model's image of seed 0 holds NaN or infinity"),
        ("denoiser", {}, "is a denoiser, which takes noise levels"),
        ("nothing", {}, "there is no model at"),
    ],
)
def test_mistakes(
    model: str,
    options: dict[str, str],
    says: str,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [word for pair in {"--out": "out", **options}.items() for word in pair]
    assert cli.main(["sample", str(models / f"{model}.safetensors"), *arguments]) == 2
    assert says in told(capsys)
    left = [path.name for path in tmp_path.rglob("*")]
    assert sorted(left) == (["out", "samples.json"] if (model, options) == ("nan", {}) else [])


def test_the_embedded_model_needs_no_more_than_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "--model", "get-nano-cifar10", "--seeds", "0-3"]) == 0
    assert capsys.readouterr().out == "get-nano-cifar10.png: 4 images of 32x32.\n"
    assert cli.main(["sample", "get-nano-cifar10", "--seeds", "0-3"]) == 0
    assert capsys.readouterr().out == "get-nano-cifar10-2.png: 4 images of 32x32.\n"
    first, second = (Path(f"get-nano-cifar10{more}.png").read_bytes() for more in ("", "-2"))
    assert first == second
    pixels = np.asarray(Image.open("get-nano-cifar10.png"))
    assert pixels.shape == (64, 64, 3) and pixels.std() > 30


def test_a_grid_is_called_like_its_model(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    small().save_pretrained(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for model in (".", str(models / "get.safetensors"), "../run/"):
        assert cli.main(["sample", model, "--seeds", "0"]) == 0
    assert [path.name for path in sorted(Path().glob("*.png"))] == [
        "get.png",
        "run-2.png",
        "run.png",
    ]
    capsys.readouterr()
    assert cli.main(["sample", str(models / "latent.safetensors")]) == 2
    assert "--out OUT.npz, not latent.png" in told(capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a model: deqgen sample MODEL, or --model MODEL"),
        (["--model", ""], "name a model"),
        (["a", "--model", "b"], "MODEL 'a' and --model 'b' are two models; give one"),
        (["get-nano-cifr10"], "Did you mean 'get-nano-cifar10'?"),
        (["me/not-there"], "HF_HUB_OFFLINE keeps from asking the Hugging Face Hub"),  # conftest.py
        (["a", "b"], "b"),
    ],
)
def test_one_model_is_named(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", *arguments]) == 2
    assert says in told(capsys)


def test_a_file_that_exists_stays(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.npz", "a.zip", "a.png", "b.NPZ"):
        (tmp_path / name).write_text("dear")
        assert sample(models / "nothing.safetensors", tmp_path / name) == 2
        assert f"{name} exists already; delete it or choose another name" in told(capsys)
        assert (tmp_path / name).read_text() == "dear"


def test_suffixes_in_capitals_are_suffixes(models: Path, tmp_path: Path) -> None:
    for name in ("a.NPZ", "a.Zip", "a.PNG"):
        assert sample(models / "get.safetensors", tmp_path / name) == 0
        small_letters = tmp_path / name.lower().replace("a.", "b.")
        assert sample(models / "get.safetensors", small_letters) == 0
        assert (tmp_path / name).read_bytes() == small_letters.read_bytes()


@pytest.mark.parametrize("labels", ["random", "3", "4,0-1", "0-4"])
def test_both_commands_speak_of_labels_alike(labels: str, models: Path, tmp_path: Path) -> None:
    """What ``sample`` writes is what ``evaluate`` measures."""
    assert sample(models / "get.safetensors", tmp_path / "a.npz", "--labels", labels) == 0
    model = load_model(models / "get.safetensors")
    policy = check_policy(labels, model.config)
    measured = torch.cat([*GeneratedImages(model, SEEDS, policy, Solve(), batch_size=8)])
    assert close(images_in(tmp_path / "a.npz"), to_pixels(measured))
    with np.load(tmp_path / "a.npz") as arrays:
        wanted = labels_for(labels, SEEDS, model.config)
        assert wanted is not None and arrays["arr_1"].tolist() == wanted.tolist()


def test_half_precision(models: Path, tmp_path: Path) -> None:
    model = models / "get.safetensors"
    assert sample(model, tmp_path / "a.npz", "--precision", "float16") == 0
    assert sample(model, tmp_path / "b.npz") == 0
    half, full = (images_in(tmp_path / name).astype(int) for name in ("a.npz", "b.npz"))
    assert 0 < np.abs(half - full).max() < 20


def test_number_lists() -> None:
    assert parse_numbers("0-3", "--seeds", 10) == [0, 1, 2, 3]
    assert parse_numbers(" 7, 2 - 4 ,9", "--seeds", 10) == [7, 2, 3, 4, 9]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"must be numbers and ranges such as .*; got ''"),
        ("1,,2", "must be numbers and ranges"),
        ("-1", "must be numbers and ranges"),
        ("1-2-3", "must be numbers and ranges"),
        ("٣", "must be numbers and ranges"),
        ("5-3", "the range 5-3 runs backwards"),
        ("4294967296", r"must lie in 0\.\.4294967295, got 4294967296"),
        ("0-3,2", "names 2 twice"),
        ("0-4294967295", "may name 10,000,000 numbers at most at a time"),
    ],
)
def test_no_number_lists(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_numbers(text, "--seeds", 2**32)


@pytest.mark.parametrize("tol", ["model", None])
@pytest.mark.parametrize("name", ["picard", "anderson", "broyden", "newton_krylov"])
def test_evaluations_are_the_calls_of_the_cell(name: str, tol: Any, models: Path) -> None:
    within = name == "newton_krylov"
    solver = NewtonKrylov(jvp="difference") if within else name
    model: Any = load_model(models / "get.safetensors")
    cell, calls = model.deq.cell, []
    model.deq.cell = lambda *args: calls.append(1) or cell(*args)
    (batch,) = generate_batches(model, SEEDS, LABELS, max_steps=5, tol=tol, solver=solver)
    assert batch.evaluations is not None
    assert batch.evaluations.tolist() == [len(calls)] * len(SEEDS)
    assert len(calls) > 5 if within else len(calls) == 5


def test_no_seeds_give_no_images(models: Path) -> None:
    assert generate(load_model(models / "get.safetensors"), [], []).shape == (0, 3, 8, 8)


def test_batches_come_one_by_one_and_leave_the_model_as_it_was(models: Path) -> None:
    model: Any = load_model(models / "get.safetensors").train()
    batches = generate_batches(model, SEEDS, LABELS, batch_size=3)
    assert model.training  # nothing has run yet
    first = next(batches)
    assert not model.training and first.seeds == SEEDS[:3] and first.images.shape == (3, 3, 8, 8)
    assert first.evaluations is not None and first.evaluations.tolist() == [12] * 3
    assert torch.is_grad_enabled()
    batches.close()  # type: ignore[attr-defined]
    assert model.training
