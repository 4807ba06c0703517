"""``deqgen distill --resume``: other numbers of processes, and what a refusal leaves as it was."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from deqgen.commands import distill_job, distill_resume
from deqgen.commands.distill_options import LossOptions
from deqgen.commands.distill_parts import loss_digests
from deqgen.commands.distill_resume import earlier_run, left_aside
from deqgen.training import TrainConfig, TrainingDiverged
from deqgen.training.run_folder import FINISHED, RunFolderError, begin_run
from tests.commands.distilling import config, distill, only, rows, toy_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("whole")
    assert distill(pairs, outdir) == 0
    return only(outdir)


@pytest.fixture
def ended(whole: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / whole.name, symlinks=True))


def unended(pairs: Path, outdir: Path, *more: str) -> Path:
    assert distill(pairs, outdir, *more) == 0
    folder = only(outdir)
    (folder / FINISHED).unlink()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_parts_in_fact_are_the_configuration(
    pairs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config(whole)["training"]["microbatch"] == 8
    folder = unended(pairs, tmp_path, "--images", "48")
    assert distill(pairs, tmp_path, "--microbatch", "8", "--resume", str(folder)) == 0
    assert rows(folder) == rows(whole)
    (folder / FINISHED).unlink()
    assert distill(pairs, tmp_path, "--microbatch", "8", "--dry-run") == 0
    assert f"Would go on with {folder}." in capsys.readouterr().out


def test_a_run_of_other_parts_is_named_and_not_picked(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What two processes begin has half the batch in a part."""
    folder = unended(pairs, tmp_path, "--microbatch", "4")
    capsys.readouterr()
    assert distill(pairs, tmp_path, "--resume", str(folder)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"deqgen: {folder} was begun by 1 process with parts of 4 images, ")
    assert said.endswith("to go on with it, give --microbatch 4, or start 2\n")
    assert distill(pairs, tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "give --microbatch 4, or start 2." in said and "Would begin" in said
    assert distill(pairs, tmp_path) == 0
    said = capsys.readouterr().out
    assert "give --microbatch 4, or start 2." in said and "00001-GET-N-4-toy: begins" in said


def test_parts_that_more_processes_cannot_have(tmp_path: Path) -> None:
    training = TrainConfig(images=64, batch_size=16)
    recorded: dict[str, Any] = {"training": {"microbatch": 16, "decay": "constant"}}
    folder = begin_run(tmp_path, "a", recorded)
    ours = {"training": {"microbatch": 8, "decay": "constant"}}
    assert earlier_run("auto", tmp_path, ours, training, 2) is None
    said = left_aside(tmp_path, ours, training, 2)
    assert said is not None and said.endswith("parts of 8; to go on with it, start 1.")
    with pytest.raises(RunFolderError, match=r"to go on with it, start 1$"):
        earlier_run(str(folder), tmp_path, ours, training, 2)
    more = {"training": {**ours["training"], "decay": "cosine"}}
    with pytest.raises(RunFolderError, match=r"another configuration: training.*decay was"):
        earlier_run(str(folder), tmp_path, more, training, 2)
    assert left_aside(tmp_path, more, training, 2) is None
    cut = TrainConfig(images=64, batch_size=16, microbatch=8)  # asked for, so another run
    assert left_aside(tmp_path, ours, cut, 2) is None
    with pytest.raises(RunFolderError, match=r"training\.microbatch was 16 and is now 8"):
        earlier_run(str(folder), tmp_path, ours, cut, 2)


def test_another_configuration_is_refused_with_every_key(
    pairs: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert distill(pairs, whole.parent, "--resume", str(whole), "--seed", "3", "--loss", "l2") == 2
    said = capsys.readouterr().err
    assert f"{whole} is the run of another configuration: " in said
    assert "loss.loss was 'l1' and is now 'l2'" in said
    assert "training.seed was 0 and is now 3" in said
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_other_pairs_or_classes_are_another_configuration(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = toy_pairs(tmp_path / "toy", num_classes=4, seed=1)
    assert distill(other, tmp_path, "--resume", str(whole)) == 2
    said = capsys.readouterr().err
    assert "pairs.digest was" in said and "num_classes was 3 and is now 4" in said


def test_a_refused_checkpoint_changes_nothing(
    pairs: Path, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for state in (ended / "checkpoints").glob("0*/state.pt"):
        state.write_bytes(b"x")
    before = content(ended)
    assert distill(pairs, ended.parent, "--resume", str(ended), "--images", "192") == 2
    assert capsys.readouterr().err.endswith("begin a new run with --resume never\n")
    assert content(ended) == before


def test_a_checkpoint_of_other_settings_changes_nothing(
    pairs: Path, ended: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, load = content(ended), distill_resume.load_checkpoint

    def other(path: Path) -> dict[str, Any]:
        state = load(path)
        return {**state, "run": {**state["run"], "examples": 25}}

    monkeypatch.setattr(distill_resume, "load_checkpoint", other)
    for more in ([], ["--dry-run"]):
        assert distill(pairs, ended.parent, "--resume", str(ended), *more) == 2
        assert "other settings (examples was 25 and is 24)" in capsys.readouterr().err
    assert content(ended) == before


def test_a_run_cannot_become_shorter_than_it_is(
    pairs: Path, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(ended)
    assert distill(pairs, ended.parent, "--resume", str(ended), "--images", "40") == 2
    said = "has learned from 96 images already, more than --images 40; give at least 96"
    assert said in capsys.readouterr().err
    assert content(ended) == before
    assert distill(pairs, ended.parent, "--resume", str(ended), "--images", "90") == 0  # 12 steps


def test_a_configuration_of_another_kind_is_refused_shortly(
    pairs: Path, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = config(ended)
    for wrong in ([found], {**found, "training": [found]}):
        (ended / "config.json").write_text(json.dumps(wrong))
        assert distill(pairs, ended.parent, "--resume", str(ended)) == 2
        said = capsys.readouterr().err
        assert len(said) < 700 and str(ended) in said


def test_damaged_records_are_named_and_the_run_goes_on(pairs: Path, tmp_path: Path) -> None:
    folder = unended(pairs, tmp_path, "--images", "48")
    (folder / "environment.json").write_text('[{"a":')
    (folder / "evaluations.jsonl").write_text('{"images": 32, "numb')
    with (
        pytest.warns(UserWarning, match=r"environment\.json is damaged"),
        pytest.warns(UserWarning, match=r"1 of 1 lines of .*evaluations\.jsonl are damaged"),
    ):
        assert distill(pairs, tmp_path, "--resume", str(folder)) == 0
    assert (folder / FINISHED).is_file() and "96 of 96" in (folder / "report.html").read_text()


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_names_the_folder(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distill_job, "train", no_space)
    assert distill(pairs, tmp_path) == 1
    folder = only(tmp_path)
    assert f"No space left on device: '{folder}'" in capsys.readouterr().err


def test_a_divergence_is_told_of_on_a_full_disk_too(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise TrainingDiverged("the loss is nan")

    monkeypatch.setattr(distill_job, "train", diverge)
    monkeypatch.setattr(distill_job, "write_report", no_space)
    assert distill(pairs, tmp_path) == 1
    assert "TrainingDiverged: the loss is nan" in capsys.readouterr().err


def test_weights_of_a_distance_count_by_content(tmp_path: Path) -> None:
    assert loss_digests(LossOptions()) == {}
    for name, text in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(text)

    def digests(vgg: str) -> Any:
        options = LossOptions(
            loss="lpips", perceptual_vgg=tmp_path / vgg, perceptual_heads=tmp_path / "a"
        )
        return loss_digests(options)["perceptual_sha256"]

    assert digests("a") == digests("b") and digests("a") != digests("c")
    assert re.fullmatch("[0-9a-f]{64}", digests("a")["heads"])
    pytest.importorskip("torchmetrics")
    options = LossOptions(loss="dists", perceptual_vgg=tmp_path / "a")
    assert len(loss_digests(options)["perceptual_sha256"]["heads"]) == 64
