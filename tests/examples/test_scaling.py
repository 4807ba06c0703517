"""examples/scaling.py at its smallest: killed, gone on with, shared, reported; and refusals."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deqgen.data import PairDataset, write_pairs
from deqgen.training.run_folder import training_in
from tests.data.stub import StubTeacher
from tests.examples.running import Done, here, start

pytestmark = pytest.mark.timeout(600)
PARTS = 11  # nine trainings, the teacher, the costs


class ColourStub(StubTeacher):
    image_shape = (3, 32, 32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stub") / "pairs"
    write_pairs(ColourStub(num_classes=10), folder, count=32, shard_size=16)
    return folder


def command(pairs: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("--preset", "smoke", "--pairs", pairs, "--output-dir", out, *more)


def run(pairs: Path, out: Path, *more: object) -> Done:
    return here("scaling.py", *command(pairs, out, *more))


@pytest.fixture(scope="module")
def resumed(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a run that was killed in its first training, and what it printed at its end."""
    out = tmp_path_factory.mktemp("scaling") / "out"
    child = start("scaling.py", *command(pairs, out))
    begun = out / "runs" / "get-24pairs-seed0" / "checkpoints"
    while not (begun.is_dir() and any(begun.iterdir())) and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert not (begun.parent / "result.json").exists()
    done = run(pairs, out)
    assert done.returncode == 0, done.stderr
    yield out, done.stdout


def assert_one_sentence(done: Done, message: str) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr


def test_everything_is_measured_and_reported(resumed: tuple[Path, str]) -> None:
    out, printed = resumed
    results = json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == 9 and len(results["costs"]) == 5
    for each in results["runs"]:
        assert [row["images"] for row in each["curve"]] == [8, 16, 32, 64]
        assert all(row["fd_cifar10"] > 0 and row["pair_l1"] > 0 for row in each["curve"])
        ratio = each["curve"][-1]["flops"] / (6e9 * each["gmacs"] * 64)
        assert ratio == pytest.approx(1)
    (tested,) = [each["test_time"] for each in results["runs"] if each["test_time"]]
    assert [row["max_steps"] for row in tested] == [1, 6, 12]
    assert results["pairs"]["nfe_total"] == 7 * 32
    assert results["teacher"]["images"] == 8
    assert not list(out.glob("runs/*/checkpoints"))
    assert len(list(out.glob("runs/*/student.safetensors"))) == 9
    for name in ("compute", "pairs", "sizes", "test_time"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    for name in ("table.md", "claims.md"):
        head, mark, table = (out / name).read_text().partition("\n\n| ")
        assert head.startswith("# ") and f"{mark}{table}".strip() in printed
    assert "cannot be tested without a GPU" in (out / "claims.md").read_text()


def test_checkpointing_saves_memory_and_parameters_are_shared(resumed: tuple[Path, str]) -> None:
    costs = json.loads((resumed[0] / "results.json").read_text())["costs"]
    plain, anew = costs["GET"], costs["GET, checkpointed"]
    assert anew["activations_mib"] < plain["activations_mib"]
    assert anew["state_mib"] == plain["state_mib"]


def test_a_killed_training_ends_as_one_that_was_not(
    resumed: tuple[Path, str], pairs: Path, tmp_path: Path, examples: Path
) -> None:
    from distillation.job import has_bfloat16  # type: ignore[import-not-found]

    plan = importlib.import_module("comparison.plan").PLANS["smoke"]
    precision = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    bench = importlib.import_module("comparison.runs").Bench(plan, PairDataset(pairs), precision)
    training = plan.trainings[0]
    alone = bench.train(training, tmp_path / "alone")
    left = json.loads((resumed[0] / "runs" / training.name / "result.json").read_text())
    for result in (alone, left):
        result.pop("seconds")
        for row in result["curve"]:
            row.pop("seconds")
    assert alone == left


def test_small_sets_lie_within_large_ones_and_apart_from_the_held_out(
    pairs: Path, examples: Path
) -> None:
    runs = importlib.import_module("comparison.runs")
    plan = importlib.import_module("comparison.plan").PLANS["smoke"]
    data = PairDataset(pairs)
    assert len(runs.FirstPairs(data, 8)) == 8
    held_out = runs.Bench(plan, data, "float32").held_out["seed"]
    assert set(held_out.tolist()).isdisjoint(data.seeds()[: plan.most_pairs].tolist())
    assert len(held_out) == plan.held_out


def test_what_another_process_is_at_is_left_to_it(
    resumed: tuple[Path, str], pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(resumed[0], out)
    (out / "runs" / "teacher" / "result.json").unlink()
    with training_in(out / "runs" / "teacher"):
        done = run(pairs, out)
    assert done.returncode == 0, done.stderr
    assert "other processes are at teacher; the last to end completes the report" in done.stdout
    assert json.loads((out / "results.json").read_text())["teacher"] is None
    done = run(pairs, out, "--report")
    assert f"1 of {PARTS} parts are not done yet; the same command goes on" in done.stdout
    assert run(pairs, out).returncode == 0
    assert json.loads((out / "results.json").read_text())["teacher"]["name"] == "stub"


def test_a_dry_run_lists_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("scaling.py", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "22 trainings" in done.stdout and "ViT, 5x parameters" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_sentence(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_sentence(here("scaling.py", "--preset", "smok"), "Did you mean 'smoke'?")
    assert_one_sentence(run(tmp_path / "none", out), "make one with `deqgen pairs make")
    full = here("scaling.py", "--pairs", pairs, "--output-dir", out)
    assert_one_sentence(full, "holds 32 pairs and 81024 are needed")
    write_pairs(StubTeacher(), tmp_path / "small", count=4)
    assert_one_sentence(run(tmp_path / "small", out), "have images (2, 4, 4) of 3 classes")
    assert not out.exists()


def test_the_folder_of_another_study_is_refused(resumed: tuple[Path, str], tmp_path: Path) -> None:
    write_pairs(ColourStub(num_classes=10), tmp_path / "more", count=33)
    done = run(tmp_path / "more", resumed[0])
    assert_one_sentence(done, "is the folder of another configuration: pairs was")
