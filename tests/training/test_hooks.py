"""Hooks, trackers and the statistics that they add to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.training import Hook, Interrupted, Moment, make_accelerator, read_stats, train
from tests.training.test_trainer import StopsAfter
from tests.training.toy import Dropping, Regression, config, same, seed_all, small_model, state


def run(directory: Path, hooks: Sequence[Hook], objective: Any = None, **changes: Any) -> None:
    objective = objective or Regression()
    train(small_model(), objective, config(**changes), directory, hooks=hooks, progress=False)


class Look:
    """Notes what it is shown."""

    def __init__(self, name: str = "seen") -> None:
        self.name = name
        self.images: list[int] = []
        self.averages: list[Tensor] = []

    def __call__(self, moment: Moment) -> dict[str, float]:
        self.images.append(moment.images)
        assert not moment.model.training
        self.averages.append(next(moment.model.parameters()).clone())
        return {self.name: moment.images / 2}


def test_hooks_see_the_average_and_their_numbers_are_kept(tmp_path: Path) -> None:
    often, once = Look("often"), Look("once")
    run(tmp_path, [Hook(32, often), Hook(10_000, once)])
    assert often.images == [32, 64, 80]
    assert once.images == [80]
    rows = [row for row in read_stats(tmp_path / "stats.jsonl") if "loss" not in row]
    assert [(row["images"], row["often"]) for row in rows] == [(32, 16), (64, 32), (80, 40)]
    assert ["once" in row for row in rows] == [False, False, True]
    average = state(tmp_path)["ema"]["0.weight"]
    assert torch.equal(often.averages[-1], average)
    assert not torch.equal(often.averages[0], average)


def test_a_hook_that_was_cut_off_is_called_again_and_others_are_not(tmp_path: Path) -> None:
    look = Look()

    def breaks(moment: Moment) -> dict[str, float]:
        look(moment)
        raise OSError("the evaluation ran out of memory")

    with pytest.raises(OSError, match="out of memory"):
        run(tmp_path, [Hook(32, breaks)])
    run(tmp_path, [Hook(32, look)])
    assert look.images == [32, 32, 64, 80]
    run(tmp_path, [Hook(32, look)])  # finished: nothing is done again
    assert look.images == [32, 32, 64, 80]
    assert same(look.averages[0], look.averages[1])


def test_a_hook_does_not_disturb_the_random_numbers(tmp_path: Path) -> None:
    for name, hooks in (("with", [Hook(16, lambda _: seed_all(5))]), ("without", [])):
        seed_all(0)
        run(tmp_path / name, hooks, Dropping())
    assert same(state(tmp_path / "with"), state(tmp_path / "without"))


def test_no_hook_is_called_on_the_way_out(tmp_path: Path) -> None:
    look = Look()
    with pytest.raises(Interrupted):
        run(tmp_path, [Hook(8, look)], StopsAfter(1, 15))
    assert look.images == [8]
    run(tmp_path, [Hook(8, look)])
    assert look.images == list(range(8, 81, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hook(0, Look()), "images of a hook must be at least 1, got 0"),
        (lambda: Hook(8, Look("loss")), "may not return loss"),
    ],
    ids=["interval", "name"],
)
def test_bad_hooks(tmp_path: Path, make: Callable[[], Hook], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, [make()])


def test_an_unknown_tracker() -> None:
    with pytest.raises(ValueError, match=r"unknown tracker 'tensorbord'. Did you mean 'tensorb"):
        make_accelerator(config(), trackers=["tensorbord"], directory=".")
    with pytest.raises(ValueError, match="trackers need the directory"):
        make_accelerator(config(), trackers=["wandb"])


@pytest.mark.parametrize(
    ("name", "install"), [("tensorboard", r"'deqgen\[tensorboard\]'"), ("wandb", "wandb")]
)
def test_a_tracker_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, install: str
) -> None:
    (tmp_path / name).mkdir()  # wandb leaves such a folder behind
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=f"{name} is not installed: pip install {install}"):
        make_accelerator(config(), trackers=[name], directory=".")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = config(images=32)
    accelerator = make_accelerator(settings, trackers=["tensorboard"], directory=tmp_path)
    train(
        small_model(),
        Regression(),
        settings,
        tmp_path,
        accelerator=accelerator,
        hooks=[Hook(32, Look())],
        progress=False,
    )
    accelerator.end_training()
    read = events.EventAccumulator(str(tmp_path / "tensorboard" / "deqgen"))
    read.Reload()
    rows = [row for row in read_stats(tmp_path / "stats.jsonl") if "loss" in row]
    points = read.Scalars("loss")
    assert [point.step for point in points] == [16, 32]
    assert [point.value for point in points] == pytest.approx([row["loss"] for row in rows])
    assert [point.value for point in read.Scalars("seen")] == [16.0]
