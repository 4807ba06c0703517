"""Two processes, started by torchrun: what they share, how they stop, how they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.training import CheckpointError, Checkpoints, make_accelerator, read_stats, train
from deqgen.training.distributed import check_processes
from tests.training.fleet import ESTIMATORS, Pairs, exact, tiny_get
from tests.training.torchrun import launch
from tests.training.toy import Regression, config, exact_model, same, state

pytestmark = pytest.mark.timeout(300)  # it starts Python six times


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two launches leave: one is killed after five steps, the other goes through the rest."""
    folder = tmp_path_factory.mktemp("fleet")
    with launch("fleet", "kill", str(folder)) as killed:
        assert killed.stdout is not None and killed.stderr is not None
        waiting = killed.stdout.readline(), killed.stdout.readline()
        assert all(waiting), killed.stderr.read()
        for line in waiting:
            os.kill(int(line), signal.SIGKILL)
        killed.communicate()
    with launch("fleet", "rest", str(folder)) as done:
        _, errors = done.communicate()
    assert done.returncode == 0, errors
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_five_steps_a_kill_and_five_are_ten_bit_for_bit(folder: Path) -> None:
    """With global random numbers, which are each process's own and which the checkpoint holds."""
    whole, killed = (state(folder / name, without=()) for name in ("dropping", "killed"))
    assert whole["images"] == 80
    assert same(whole, killed)
    first, second = whole["random"]
    assert not torch.equal(first["torch"], second["torch"])
    rows = [read_stats(folder / name / "stats.jsonl") for name in ("dropping", "killed")]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]


def test_two_processes_train_as_one_does(folder: Path, tmp_path: Path) -> None:
    objective = exact()
    train(exact_model(), objective, config(microbatch=2), tmp_path, progress=False)
    one, two = Checkpoints(tmp_path).load(), Checkpoints(folder / "plain").load()
    assert one is not None and two is not None
    for name, weight in one.model.items():
        torch.testing.assert_close(weight, two.model[name], rtol=1e-12, atol=1e-13)
    for name, weight in one.ema.items():
        torch.testing.assert_close(weight, two.ema[name], rtol=1e-6, atol=1e-7)
    rows = (read_stats(path / "stats.jsonl") for path in (tmp_path, folder / "plain"))
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-6)


def test_one_process_goes_on_where_two_stopped(folder: Path, tmp_path: Path) -> None:
    settings = config(microbatch=2, images=160)
    train(exact_model(), exact(), settings, tmp_path / "one", progress=False)
    shutil.copytree(folder / "plain", tmp_path / "two", symlinks=True)
    train(exact_model(), exact(), settings, tmp_path / "two", progress=False)
    one, two = (state(tmp_path / name)["model"] for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-11, atol=1e-12)
    shutil.copytree(folder / "plain", tmp_path / "uncut", symlinks=True)
    with pytest.raises(CheckpointError, match="microbatch was 2 and is 8"):
        train(exact_model(), exact(), config(images=160), tmp_path / "uncut", progress=False)


def test_no_example_is_seen_twice(results: list[dict[str, Any]], tmp_path: Path) -> None:
    objective = exact()
    train(exact_model(), objective, config(microbatch=2), tmp_path, progress=False)
    first, second = (result["seen"] for result in results)
    taken_in_turn = [part for both in zip(first, second, strict=True) for part in both]
    assert taken_in_turn == objective.seen


def test_a_signal_to_one_process_stops_both_after_the_same_step(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    for result in results:
        assert result["signal"]["error"] == "Interrupted"
        assert result["signal"]["signal"] == signal.SIGTERM
        assert "stopped after 32 images" in result["signal"]["text"]
    assert same(state(folder / "plain"), state(folder / "stopped"))


def test_what_is_not_finite_in_one_process_stops_both(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    for result in results:
        assert result["nonfinite"]["error"] == "TrainingDiverged"
        assert "after 24 images the loss is nan" in result["nonfinite"]["text"]
    batch = json.loads((folder / "nonfinite" / "nonfinite" / "batch.json").read_text())
    parts = {part["part"]: part for rank in batch["ranks"] for part in rank["parts"]}
    assert [part for part in range(4) if parts[part]["loss"] == "nan"] == [1]
    seen = [result["seen"][6:8] for result in results]  # of the same step of a sound run
    assert [[part["indices"] for part in rank["parts"]] for rank in batch["ranks"]] == seen
    saved = Checkpoints(folder / "nonfinite" / "nonfinite").load()
    sound = Checkpoints(folder / "nonfinite").load()
    assert saved is not None and saved.images == 24
    assert sound is not None and sound.images == 16


def test_a_full_disk_is_an_error_in_both_and_the_old_checkpoint_stays(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        assert result["disk"]["error"] == "OSError"
        assert "No space left" in result["disk"]["text"]
        assert result["disk"]["images"] == 16


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("statistics", "OSError", "No space left"),
        ("first", "OSError", "No space left"),
        ("tracker", "ConnectionError", "no tracker"),
        ("hook0", "ArithmeticError", "of a hook"),
        ("hook1", "ArithmeticError", "of a hook"),
        ("value", "ValueError", "may not return loss"),
    ],
)
def test_an_error_of_one_process_is_one_of_both(
    results: list[dict[str, Any]], name: str, kind: str, text: str
) -> None:
    for result in results:
        assert result["errors"][name]["error"] == kind
        assert text in result["errors"][name]["text"]


def test_an_error_that_cannot_travel_is_told(results: list[dict[str, Any]]) -> None:
    errors = [result["errors"]["odd"] for result in results]
    assert [error["error"] for error in errors] == ["Odd", "RuntimeError"]
    assert errors[1]["text"] == "Odd: odd 3"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["objective", "hook"])
def test_an_error_of_one_process_ends_the_other(tmp_path: Path, scenario: str) -> None:
    """Though that waits for it; the checkpoint of the second step stays.

    An error in the middle of a step is then the other's too, unless torchrun ends that before it
    can say so; a message that was broken off tells nobody anything.
    """
    with launch("fleet", scenario, str(tmp_path)) as fails:
        _, errors = fails.communicate(timeout=240)
    assert fails.returncode == 1
    assert "ArithmeticError: only here" in errors
    assert scenario == "hook" or "gloo" not in errors.lower()
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.images == 16


def test_the_average_that_is_returned_is_one(results: list[dict[str, Any]]) -> None:
    assert results[0]["average"] == results[1]["average"]


def test_processes_wait_for_each_other_for_days(results: list[dict[str, Any]]) -> None:
    assert all(result["limit"] > 24 * 3600 for result in results)


def test_hooks_see_one_average(folder: Path, results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["processes"] == 2
        assert result["hooks"]["seen"] == [32, 64, 80]
    rows = [row for row in read_stats(folder / "hooks" / "stats.jsonl") if "equal" in row]
    assert [row["images"] for row in rows] == [32, 64, 80]
    assert all(row["equal"] == 1.0 for row in rows)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_equilibrium_models_train_in_parallel(folder: Path, tmp_path: Path, name: str) -> None:
    settings = config(batch_size=4, images=12, microbatch=1)
    train(tiny_get(name), Pairs(), settings, tmp_path, progress=False)
    one, two = Checkpoints(tmp_path).load(), Checkpoints(folder / name).load()
    assert one is not None and two is not None
    start = tiny_get(name).state_dict()
    assert any(not torch.equal(start[name], weight) for name, weight in two.model.items())
    for key, weight in one.model.items():
        torch.testing.assert_close(weight, two.model[key], rtol=1e-8, atol=1e-8)


def test_a_batch_that_cannot_be_cut(results: list[dict[str, Any]]) -> None:
    assert all("indivisible" not in result for result in results)
    with pytest.raises(ValueError, match="batch_size 9 is not divisible by 2 processes = 2"):
        config(batch_size=9).parts(2)
    with pytest.raises(ValueError, match="8 is not divisible by microbatch 8 x 2 processes = 16"):
        config(microbatch=8).parts(2)


def test_processes_that_do_not_know_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = make_accelerator(config())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes were started .* in a group of 1"):
        check_processes(accelerator)
    with pytest.raises(ValueError, match="cpu=True"):
        train(exact_model(), Regression(), config(), tmp_path, accelerator=accelerator)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_launches_that_accelerate_would_shard_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They say what to do instead."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=rf"does not run under accelerate's {name}.*--shard"):
        make_accelerator(config())


def test_a_launch_with_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"mixed precision bf16, .* says precision 'float32'"):
        make_accelerator(config())
    make_accelerator(config(precision="bfloat16"))
