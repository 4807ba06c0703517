"""``deqgen distill``: what a run leaves, how it goes on, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.models import load_model
from deqgen.training import Distillation, TrainConfig, trackers
from tests.commands.distilling import config, distill, only, rows, toy_pairs, weights
from tests.data.stub import same

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    outdir = tmp_path_factory.mktemp("whole")
    assert distill(pairs, outdir) == 0
    return only(outdir)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("deqgen: ")
    assert captured.err.count("\n") == 1
    return captured.err


def interfere(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Call ``action`` with the loss of one step; it returns the loss to take."""
    steps, plain = [0], Distillation.loss

    def loss(self: Distillation, *arguments: Any) -> Tensor:
        steps[0] += 1
        value = plain(self, *arguments)
        return action(value) if steps[0] == step else value

    monkeypatch.setattr(Distillation, "loss", loss)


def test_a_whole_run(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(pairs, tmp_path, "--desc", "first try", "--sample-images", "48") == 0
    folder = only(tmp_path)
    assert folder.name == "00000-GET-N-4-toy-first-try"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.json", "environment.json", "finished.json", "log.txt",
        "report.html", "samples", "stats.jsonl",
    }  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert "learns from 24 pairs: 96 images, 8 a step" in said[0] and "begins" in said[0]
    assert said[-1].endswith(f"Next: deqgen sample {folder} --out samples/")
    logged = (folder / "log.txt").read_text().splitlines()
    assert [line.partition(" ")[2] for line in logged] == said
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", line) for line in logged)
    assert [row["images"] for row in rows(folder) if "loss" in row] == list(range(16, 97, 16))
    assert sorted(path.stem for path in (folder / "samples").iterdir()) == [
        "000000000048", "000000000096",
    ]  # fmt: skip
    assert "000000000096" not in (folder / "report.html").read_text().partition("</style>")[0]
    model = load_model(folder / "checkpoints" / "latest" / "ema.safetensors")
    assert (model.config.image_size, model.config.num_classes) == (8, 3)
    assert json.loads((folder / "finished.json").read_text())["images"] == 96
    (session,) = json.loads((folder / "environment.json").read_text())
    assert session["processes"] == 1


def test_the_configuration_is_written_whole(whole: Path, pairs: Path) -> None:
    found = config(whole)
    assert list(found) == ["pairs", "model", "loss", "training", "look", "run"]
    assert found["pairs"]["folder"] == str(pairs.resolve()) and found["pairs"]["count"] == 24
    wanted = TrainConfig(images=96, batch_size=8, microbatch=8, log_images=16, save_images=32)
    assert found["training"] == json.loads(json.dumps(dataclasses.asdict(wanted)))
    assert found["model"]["config"]["gradient"] == "unrolled"


def test_options_reach_the_model(pairs: Path, tmp_path: Path) -> None:
    more = ["--no-conditional", "--solver", "anderson", "--max-steps", "3", "--checkpoint"]
    assert distill(pairs, tmp_path, *more, "--images", "8", "--loss", "huber") == 0
    model = config(only(tmp_path))["model"]["config"]
    assert (model["num_classes"], model["solver"], model["max_steps"]) == (None, "anderson", 3)
    assert model["gradient"] == {"gradient": "unrolled", "options": {"checkpoint": True}}
    loaded = load_model(only(tmp_path) / "checkpoints" / "latest" / "ema.safetensors")
    assert loaded.config.num_classes is None


def test_a_dry_run_leaves_nothing(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(pairs, tmp_path / "runs", "--dry-run") == 0
    assert not (tmp_path / "runs").exists()
    text, _, said = capsys.readouterr().out.partition("\n}\n")
    assert json.loads(text + "\n}")["training"]["images"] == 96
    assert said.startswith(f"Would begin {tmp_path / 'runs' / '00000-GET-N-4-toy'}.\n")
    assert "96 images, 8 a step in parts of 8, by 1 process on cpu" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_exactly(
    number: signal.Signals,
    pairs: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return loss

    with monkeypatch.context() as patch:
        interfere(patch, 5, stop)
        status = distill(pairs, tmp_path)
    folder = only(tmp_path)
    captured = capsys.readouterr()
    said = f"stopped after 40 images; the checkpoint is in {folder}; the same command goes on."
    if number == signal.SIGTERM:
        assert status == 0 and captured.out.splitlines()[-1] == said
    else:
        assert status == 130 and captured.err.splitlines()[-1] == f"deqgen: {said}"
    assert said in (folder / "log.txt").read_text() and (folder / "report.html").is_file()
    assert not (folder / "finished.json").exists()
    assert distill(pairs, tmp_path, "--dry-run") == 0
    assert f"Would go on with {folder}." in capsys.readouterr().out
    assert distill(pairs, tmp_path) == 0
    assert f"{folder}: goes on." in capsys.readouterr().out
    assert only(tmp_path) == folder and rows(folder) == rows(whole)
    for name in ("model", "ema"):
        assert same(weights(folder, name), weights(whole, name))
    assert len(json.loads((folder / "environment.json").read_text())) == 2


WAITS = """
import signal, sys, time
from deqgen import cli
from deqgen.training import Distillation
steps, plain = [0], Distillation.loss
def loss(self, *arguments):
    steps[0] += 1
    if steps[0] == 5:
        ours = signal.getsignal(signal.SIGTERM)
        print("waiting", flush=True)
        while signal.getsignal(signal.SIGTERM) == ours:  # it is taken back once one has come
            time.sleep(0.01)
    return plain(self, *arguments)
Distillation.loss = loss
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_process_ends_well_after_sigterm(pairs: Path, whole: Path, tmp_path: Path) -> None:
    options = ["--model", "GET-N/4", "--images", "96", "--batch-size", "8", "--log-images", "16"]
    options += ["--save-images", "32", "--sample-images", "0", "--outdir", str(tmp_path)]
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS, "distill", str(pairs), *options],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert any(line == "waiting\n" for line in child.stdout)
    child.terminate()
    out, _ = child.communicate()
    assert child.returncode == 0 and out.startswith("stopped after 40 images; ")
    assert distill(pairs, tmp_path) == 0
    assert same(weights(only(tmp_path)), weights(whole)) and rows(only(tmp_path)) == rows(whole)


def test_never_begins_a_new_run_and_another_configuration_too(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch:
        interfere(patch, 1, stop)
        assert distill(pairs, tmp_path) == 0
    for more in (["--resume", "never"], ["--seed", "1"], ["--loss", "l2"]):
        assert distill(pairs, tmp_path, "--images", "8", *more) == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert distill(pairs, tmp_path, "--desc", "what decides nothing") == 0  # goes on with the first
    assert len(list(tmp_path.iterdir())) == 4
    assert rows(min(tmp_path.iterdir()))[-1]["images"] == 96


def test_a_finished_run_is_made_longer_by_its_path(
    pairs: Path, tmp_path: Path, whole: Path
) -> None:
    assert distill(pairs, tmp_path, "--images", "48") == 0
    folder = only(tmp_path)
    assert distill(pairs, tmp_path / "elsewhere", "--resume", str(folder)) == 0
    assert not (tmp_path / "elsewhere").exists() and only(tmp_path) == folder
    assert same(weights(folder), weights(whole))
    assert config(folder)["training"]["images"] == 96


def test_evaluation_on_the_way(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pairs", side=32, num_classes=0)
    more = ["--model", "GET-N/8", "--images", "16", "--evaluate-images", "8"]
    with pytest.warns(UserWarning, match="16 images are fewer than the 50,000"):
        assert distill(pairs, tmp_path / "runs", *more, "--evaluate-count", "16") == 0
    folder = only(tmp_path / "runs")
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["images"] for line in found] == [8, 16]
    fingerprint = found[0]["fingerprint"]
    assert (fingerprint["images"], fingerprint["seeds"]) == (16, "0..15")
    assert (fingerprint["weights"], fingerprint["features"]) == ("EMA", "cifar10")
    measured = [row["fd_cifar10"] for row in rows(folder) if "fd_cifar10" in row]
    assert measured == [line["numbers"]["fd_cifar10"] for line in found]
    assert f"{measured[1]:.6g}" in (folder / "report.html").read_text()
    assert "after 16 images: fd_cifar10 " in (folder / "log.txt").read_text()


def test_what_diverges_leaves_its_report(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interfere(monkeypatch, 7, lambda loss: loss * math.nan)
    assert distill(pairs, tmp_path) == 1
    assert "TrainingDiverged: after 48 images the loss is nan" in capsys.readouterr().err
    folder = only(tmp_path)
    assert "Not finished: 48 of 96 images" in (folder / "report.html").read_text()
    assert "TrainingDiverged" in (folder / "log.txt").read_text()


def test_trackers_write_into_the_folder(pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert distill(pairs, tmp_path, "--trackers", "tensorboard", "--images", "16") == 0
    assert list((only(tmp_path) / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--model", "GET-Q/4"], "unknown model 'GET-Q/4'. Did you mean"),
        (["--model", "GET-N/3"], "unknown model 'GET-N/3'"),
        (["--solver", "andersen"], "'anderson'"),
        (["--gradient", "unroled"], "'unrolled'"),
        (["--model", "ViT-N/4", "--solver", "anderson"], "has no option 'solver'"),
        (["--max-steps", "0"], "max_steps"),
        (["--gradient", "jfb", "--checkpoint"], "belongs to --gradient unrolled, not to 'jfb'"),
        (["--trackers", "tensorbord"], "unknown tracker 'tensorbord'. Did you mean 'tensorboard'"),
        (["--loss", "l3"], "'l3'"),
        (["--loss-decay", "2"], "--loss-decay must lie in (0, 1], got 2.0"),
        (["--loss", "lpips"], "--loss lpips needs --perceptual-vgg PATH"),
        (["--loss", "dists", "--perceptual-vgg", "no.pth"], "no.pth"),
        (["--perceptual-heads", "x"], "--perceptual-heads belongs to --loss lpips or dists"),
        (["--batch-size", "0"], "deqgen: batch_size must be at least 1, got 0"),
        (["--microbatch", "3"], "batch_size 8 is not divisible by microbatch 3"),
        (["--batch-sise", "4"], "Perhaps you meant: --batch-size"),
        (["--learning-rte", "4"], "Perhaps you meant: --learning-rate"),
        (["--precision", "bf16"], "'bf16'"),
        (["--evaluate-images", "8"], "--evaluate-features cifar10 cannot look at these images"),
        (["--evaluate-images", "8", "--evaluate-count", "1"], "needs at least 2 images"),
        (["--sample-images", "-1"], "sample_images must not be negative, got -1"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["--precision", "float16", "--device", "cpu"], "precision 'float16' needs a GPU"),
        (["--betas", "1.5", "0.9"], "betas must lie in [0, 1), got (1.5, 0.9)"),
        (["--weight-decay", "nan"], "weight_decay must be finite, got nan"),
        (["--learning-rate", "inf"], "learning_rate must be positive and finite, got inf"),
        (["--ema-ramp", "nan"], "ema_ramp must be finite, got nan"),
        (["--seed", "99999999999999999999"], "seed must be below 2**63, got 9999"),
        (["--desc", "x" * 300], "would have 318 bytes, and a disk takes 255"),
        (["--evaluate-count", "100"], "--evaluate-count 100 changes nothing without"),
        (["--evaluate-features", "inception"], "--evaluate-features inception changes nothing"),
        (["--evaluate-reference", "x.npz"], "--evaluate-reference x.npz changes nothing"),
        (["--decay", "cosine", "--warmup-images", "97"], "--warmup-images 97 outlasts the run"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    more: list[str],
    says: str,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert distill(pairs, tmp_path / "runs", *more) == 2
    assert says in told(capsys)
    assert not (tmp_path / "runs").exists()


def test_pairs_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = toy_pairs(tmp_path / "odd", side=6)
    assert distill(odd, tmp_path / "runs") == 2
    assert "patch" in told(capsys)
    assert distill(tmp_path / "none", tmp_path / "runs") == 2
    assert "none holds no pairs" in told(capsys)


def test_an_outdir_that_is_none(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("")
    assert distill(pairs, tmp_path / "runs") == 2
    assert "runs is a file; runs need a folder" in told(capsys)


def test_a_tracker_that_is_not_installed(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    assert distill(pairs, tmp_path / "runs", "--trackers", "tensorboard") == 2
    assert "not installed: pip install 'deqgen[tensorboard]'" in told(capsys)
    assert not (tmp_path / "runs").exists()


def test_processes_that_do_not_know_of_each_other(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distill(pairs, tmp_path / "runs") == 2
    assert "2 processes were started (WORLD_SIZE)" in told(capsys)
    assert not (tmp_path / "runs").exists()


def test_help_names_every_setting_and_does_not_wait_for_torch() -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
        "from deqgen import cli; cli.main(['distill', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    loaded = done.stdout.split()
    assert "deqgen.training.config" in loaded and "torch" not in loaded


def test_an_optimizer_that_torch_lacks_leaves_no_folder(
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert distill(pairs, tmp_path / "runs", "--optimizer", "muon") == 2
    assert "optimizer 'muon' needs PyTorch 2.9" in told(capsys)
    assert not (tmp_path / "runs").exists()
