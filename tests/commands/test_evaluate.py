"""deqgen evaluate: models and images from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deqgen import cli
from deqgen.data import to_uint8, write_image_zip
from deqgen.models import save_model
from deqgen.training import Checkpoints
from tests.evaluation.patterns import patterns
from tests.evaluation.tiny import TinyFeatures, tiny_model


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name "tiny" for a feature network, beside those there are."""
    import deqgen.evaluation.model_evaluation as inside

    real = inside.load_features

    def load(name: str, *, device: Any = "cpu") -> Any:
        return TinyFeatures() if name == "tiny" else real(name, device=device)

    monkeypatch.setattr(inside, "load_features", load)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors (ten classes), bare.safetensors (none), waves.zip and waves.npz."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_model(tiny_model(), folder / "model.safetensors")
    save_model(tiny_model(None), folder / "bare.safetensors")
    pixels = to_uint8(patterns(40)).permute(0, 2, 3, 1).contiguous().numpy()
    write_image_zip(folder / "waves.zip", pixels, None)
    np.savez(folder / "waves.npz", pixels)
    return folder


def run(place: Path, *arguments: str) -> int:
    paths = [str(place / a) if (place / a).exists() else a for a in arguments]
    return cli.main(["evaluate", *paths])


FEW = "20 images are fewer than the 50,000 that published numbers are measured on"


def test_a_sweep(tiny: None, place: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "numbers.json"
    status = run(
        place,
        "model.safetensors",
        *("--features", "tiny", "--reference", "waves.zip", "--count", "20", "--repeats", "2"),
        *("--metrics", "fd", "kid", "is", "pr", "dc", "--solver", "picard", "anderson"),
        *("--max-steps", "1", "2", "--labels", "3", "--seed-start", "5", "--tol", "0"),
        *("--out", str(out)),
    )
    said = capsys.readouterr()
    assert status == 0, said.err
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:5] == ["solver", "max_steps", "nfe", "of", "fd_tiny"]
    assert lines[1].split()[:6] == ["picard", "1", "1", "min", "of", "2"]
    for part in ("tiny (tiny-8)", "waves.zip, 40 images; split: not stated", "labels class 3"):
        assert part in said.out
    assert "seeds 5..24 (the first of 2 ranges)" in " ".join(said.out.split())
    assert said.err == f"deqgen: {FEW}: a Frechet distance comes out too large, so compare " + (
        "equal counts only.\n"
    )
    rows = json.loads(out.read_text())["rows"]
    assert [(row["solver"], row["max_steps"]) for row in rows] == [
        ("picard", 1),
        ("picard", 2),
        ("anderson", 1),
        ("anderson", 2),
    ]
    mark = rows[0]["evaluations"][1]["fingerprint"]
    assert (mark["seeds"], mark["labels"], mark["tol"]) == ("25..44", "class 3", "None")
    assert mark["weights"] == "as saved in model.safetensors"
    assert rows[0]["spread"]["fd_tiny"]["min"] <= rows[0]["spread"]["fd_tiny"]["max"]


@pytest.mark.parametrize("source", ["waves.zip", "waves.npz"])
def test_images(tiny: None, place: Path, tmp_path: Path, capsys: Any, source: str) -> None:
    out = tmp_path / "numbers.json"
    options = ("--features", "tiny", "--reference", "waves.zip", "--metrics", "fd", "pr")
    assert run(place, source, *options, "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.out.split()[:5] == ["images", "fd_tiny", "precision", "recall", "40"]
    (row,) = json.loads(out.read_text())["rows"]
    assert row["metrics"]["fd_tiny"] == pytest.approx(0, abs=1e-6)
    assert row["metrics"]["precision"] == row["metrics"]["recall"] == 1
    assert (row["fingerprint"]["source"], row["nfe"]) == (source, None)


def test_the_shipped_network_and_reference(place: Path, capsys: Any) -> None:
    assert run(place, "waves.zip", "--count", "12", "--metrics", "fd", "kid") == 0
    said = capsys.readouterr()
    assert said.out.split()[:3] == ["images", "fd_cifar10", "12"]
    assert "split: train" in said.out
    assert "left out   kid: the reference (cifar10" in said.out and "moments only" in said.out
    assert said.err.startswith("deqgen: kid will be left out: the reference (cifar10")
    assert run(place, "waves.zip", "--count", "12", "--metrics", "kid") == 2
    said = capsys.readouterr()
    assert said.out == "" and "none of the metrics asked for can be had. kid: " in said.err


WAY = ("--features", "tiny", "--reference", "waves.zip", "--count", "20")


def test_a_file_of_numbers_is_checked_before_the_run(
    tiny: None, place: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    for out, says in (
        ("old.json", "old.json exists already; delete it or choose another name"),
        ("folder.json", "folder.json exists already"),
        ("file/a.json", "a.json cannot be written: "),
        ("/proc/a.json", "--out /proc/a.json cannot be written: "),
    ):
        for source in ("none.safetensors", "none.zip"):  # which would be refused later
            status = run(place, source, *WAY, "--out", str(tmp_path / out))
            assert status == 2 and says in capsys.readouterr().err
    assert (tmp_path / "old.json").read_text() == "old"


def test_nobody_reads_the_table_and_the_file_is_there(
    tiny: None, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import deqgen.evaluation.table as table

    def broken_pipe(*_: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("os.dup2", lambda *_: None)
    for name in ("sweep_table", "images_table"):
        monkeypatch.setattr(table, name, broken_pipe)
    for source in ("model.safetensors", "waves.zip"):
        out = tmp_path / f"{source}.json"
        assert run(place, source, *WAY, "--out", str(out)) == 1
        assert len(json.loads(out.read_text())["rows"]) == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_a_sweep_that_ends_late_has_saved_its_rows(
    tiny: None,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: type[BaseException],
) -> None:
    import deqgen.evaluation.sweep as inside

    real = inside.evaluate_model

    def measured(*arguments: Any, **options: Any) -> Any:
        if options["max_steps"] == 3:
            raise end
        return real(*arguments, **options)

    monkeypatch.setattr(inside, "evaluate_model", measured)
    out = tmp_path / "a.json"
    status = run(place, "model.safetensors", *WAY, "--max-steps", "1", "2", "3", "--out", str(out))
    assert status == (130 if end is KeyboardInterrupt else 1)
    rows = json.loads(out.read_text())["rows"]
    assert [row["max_steps"] for row in rows] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_checkpoint_of_a_run_is_named(tiny: None, tmp_path: Path, place: Path) -> None:
    model = tiny_model()
    checkpoints = Checkpoints(tmp_path / "run")
    for images in (64, 128):
        checkpoints.save(images, {}, model, model)
    folder = tmp_path / "run" / "checkpoints"
    for number, (source, weights) in enumerate(
        (
            (tmp_path / "run", "EMA of checkpoint 000000000128"),
            (folder, "EMA of checkpoint 000000000128"),
            (folder / "latest", "EMA of checkpoint 000000000128"),
            (folder / "000000000064", "EMA of checkpoint 000000000064"),
            (folder / "000000000064" / "ema.safetensors", "EMA of checkpoint 000000000064"),
        )
    ):
        out = tmp_path / f"{number}.json"
        assert run(place, str(source), *WAY, "--metrics", "fd", "--out", str(out)) == 0
        (row,) = json.loads(out.read_text())["rows"]
        assert row["evaluations"][0]["fingerprint"]["weights"] == weights


def test_mistakes(tiny: None, place: Path, tmp_path: Path, capsys: Any) -> None:
    tiny_way = ("--features", "tiny", "--reference", "waves.zip", "--count", "20")
    save_model(broken(), tmp_path / "nan.safetensors")
    for arguments, says in (
        (("model.safetensors", "--metrics", "fdd"), "unknown metric 'fdd'. Did you mean 'fd'?"),
        (("model.safetensors", *tiny_way[:4], "--count", "0"), "at least 2 images"),
        (("model.safetensors", *tiny_way, "--repeats", "0"), "repeats must be at least 1, got 0"),
        (("model.safetensors", *tiny_way, "--solver", "andersen"), "'anderson'"),
        (("model.safetensors", *tiny_way, "--labels", "rndom"), "Did you mean 'random'?"),
        (("model.safetensors", *tiny_way, "--labels", "11"), "labels must lie in 0..9, got 11"),
        (("bare.safetensors", *tiny_way, "--labels", "uniform"), "unconditional"),
        (("model.safetensors", *tiny_way, "--tol", "-1"), "rtol"),
        (("model.safetensors", *tiny_way, "--seed-start", "4294967290"), "0..4294967295"),
        (("model.safetensors", *tiny_way, "--out", "a.csv"), "--out is a .json file"),
        (("model.safetensors", *tiny_way[:2], "--count", "20"), "the tiny network has 8"),
        (("model.safetensors", "--count", "20"), "(B, 3, 32, 32)"),
        (("model.safetensors", "--reference", "cifar11"), "Did you mean 'cifar10'?"),
        (("model.safetensors", "--features", "incepton"), "Did you mean 'inception'?"),
        (("model.safetensors", "--precision", "half"), "half"),
        ((str(tmp_path / "nan.safetensors"), *tiny_way), "image of seed 0 holds NaN"),
        ((str(tmp_path / "no.safetensors"), *tiny_way), "there is no model at"),
        ((str(tmp_path / "no.zip"), *tiny_way), "there is no image archive"),
        (("waves.zip", *tiny_way[:4], "--count", "41"), "waves.zip holds 40 images, not 41"),
        (("waves.zip", *tiny_way, "--labels", "3", "--tol", "0.1"), "--labels, --tol says how"),
    ):
        status, said = run(place, *arguments), capsys.readouterr()
        assert (status, said.out, said.err.count("\n")) == (2, "", 1), said.err
        assert says in said.err


@pytest.mark.slow
def test_a_reference_that_rank_0_refuses_ends_all_processes(tmp_path: Path) -> None:
    save_model(tiny_model(image_size=32, patch_size=8), tmp_path / "model.safetensors")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "deqgen"]
    options = ["model.safetensors", "--count", "20", "--reference", "cifar11"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "evaluate", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("Did you mean 'cifar10'?") == 1


def broken() -> Any:
    model = tiny_model()
    with torch.no_grad():
        next(reversed(list(model.parameters()))).fill_(torch.nan)
    return model


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    save_model(tiny_model(image_size=32, patch_size=8), tmp_path / "model.safetensors")
    options = ["model.safetensors", "--count", "51", "--batch-size", "8", "--out"]
    found = []
    for count in (1, 2):
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m"]
        done = subprocess.run(
            [sys.executable, "-m", *launch, "deqgen", "evaluate", *options, f"{count}.json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("versions") == 1, "rank 0 alone speaks"
        (row,) = json.loads((tmp_path / f"{count}.json").read_text())["rows"]
        found.append(row["evaluations"][0])
    assert found[1]["metrics"] == pytest.approx(found[0]["metrics"], rel=1e-5)
    assert found[1]["fingerprint"] == found[0]["fingerprint"]
    assert found[1]["nfe"] == found[0]["nfe"]
