"""Stopped and continued, a run is the same run: killed, interrupted, with global random numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqgen.training import (
    CheckpointError,
    Checkpoints,
    Interrupted,
    TrainConfig,
    read_stats,
    train,
)
from tests.training.toy import Dropping, Regression, config, same, seed_all, small_model, state

REPOSITORY = Path(__file__).resolve().parents[2]


def run(directory: Path, settings: TrainConfig, objective: Any = None) -> nn.Module:
    objective = Regression() if objective is None else objective
    return train(small_model(), objective, settings, directory, progress=False).ema


def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path: Path) -> None:
    """Killed in its sixth step, whose checkpoint is of the fifth."""
    run(tmp_path / "whole", config())
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from deqgen.training import train
        from tests.training.toy import Regression, config, small_model

        class Waiting(Regression):
            def loss(self, *arguments):
                if len(self.seen) == 5:
                    print("now", flush=True)
                    sys.exit(sys.stdin.read())  # which ends only with the test
                return super().loss(*arguments)

        folder = Path({str(tmp_path / "killed")!r})
        train(small_model(), Waiting(), config(save_images=8), folder, progress=False)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    found = Checkpoints(tmp_path / "killed").load()
    assert found is not None and found.images == 40
    run(tmp_path / "killed", config())
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))
    rows = [read_stats(tmp_path / name / "stats.jsonl") for name in ("whole", "killed")]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]


def test_global_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    for name, lengths in (("whole", [80]), ("halves", [40, 80])):
        for seed, images in enumerate(lengths):
            model = small_model()
            seed_all(seed)  # the second half would start elsewhere
            settings = config(images=images, log_images=8)
            train(model, Dropping(), settings, tmp_path / name, progress=False)
    assert same(state(tmp_path / "whole", without=()), state(tmp_path / "halves", without=()))


def test_every_setting_that_differs_is_named(tmp_path: Path) -> None:
    run(tmp_path, config(images=16))
    changed = config(learning_rate=0.1, seed=3, microbatch=4, save_images=80, keep_checkpoints=1)
    with pytest.raises(CheckpointError) as refused:
        run(tmp_path, changed, Regression(25))
    for difference in (
        "learning_rate was 0.01 and is 0.1",
        "seed was 0 and is 3",
        "microbatch was 8 and is 4",
        "examples was 24 and is 25",
    ):
        assert difference in str(refused.value)
    assert "save_images" not in str(refused.value)


def test_a_microbatch_that_is_the_batch_is_none(tmp_path: Path) -> None:
    run(tmp_path, config(images=16))
    run(tmp_path, config(images=32, microbatch=8))


class Fails(Regression):
    """Its loss is not finite from a step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def loss(self, *arguments: Any) -> Tensor:
        torch.rand(1)
        value = super().loss(*arguments)
        return value * torch.inf if len(self.seen) > self.step else value


def test_what_diverged_can_be_looked_at(tmp_path: Path) -> None:
    """The state before the step is a folder to go on from, and the step is the same one."""
    for attempt in range(2):  # the second replaces what the first left
        objective = Fails(3 - 2 * attempt)
        with pytest.raises(RuntimeError, match="after 24 images the loss is inf"):
            run(tmp_path, config(), objective)
    saved = Checkpoints(tmp_path / "nonfinite").load()
    assert saved is not None and saved.images == 24
    again = Regression()
    run(tmp_path / "nonfinite", config(images=32), again)
    assert again.seen == objective.seen[-1:]
    newest = Checkpoints(tmp_path).load()
    assert newest is not None and newest.images == 16
    run(tmp_path / "sound", config(images=24))
    sound = Checkpoints(tmp_path / "sound").load()
    assert sound is not None
    assert same(sound.model, saved.model) and same(sound.ema, saved.ema)  # BatchNorm's too


def test_what_diverged_says_where_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="There is no checkpoint yet"):
        run(tmp_path, config(), Fails(0))
    with pytest.raises(RuntimeError, match=r"The last checkpoint is .*/checkpoints/000000000016"):
        run(tmp_path, config(), Fails(3))


@pytest.mark.parametrize("images", [0, 16])
def test_a_signal_while_a_checkpoint_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    """It ends the run before the next step, and before an evaluation that is to be made up for."""
    if images:
        run(tmp_path, config(images=images))
    load = Checkpoints.load

    def slow(self: Checkpoints) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load(self)

    monkeypatch.setattr(Checkpoints, "load", slow)
    kept = "the checkpoint is in" if images else "there is no checkpoint yet"
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal got through"))
    objective = Regression()
    try:
        with pytest.raises(Interrupted, match=f"stopped after {images} images; {kept}"):
            run(tmp_path, config(), objective)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert objective.seen == []


def test_statistics_are_on_the_disk_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave a checkpoint without the rows before it."""
    path, fsync, save = tmp_path / "stats.jsonl", os.fsync, Checkpoints.save
    flushed = [0]

    def flush(handle: int) -> None:
        found = os.fstat(handle)
        if path.exists() and found.st_ino == path.stat().st_ino:
            flushed.append(found.st_size)
        fsync(handle)

    def checked(self: Checkpoints, *arguments: Any) -> Path:
        assert flushed[-1] == path.stat().st_size > 0
        return save(self, *arguments)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Checkpoints, "save", checked)
    run(tmp_path, config())
    assert len(flushed) > 5


def test_a_diverged_run_on_a_full_disk_still_says_that_it_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("deqgen.training.run.write_batch", fails)
    with pytest.raises(RuntimeError, match=r"no step was taken.*could not be written.*No space"):
        run(tmp_path, config(), Fails(0))
