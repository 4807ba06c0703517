"""Order, schedule, average, losses, statistics, checkpoint file, run folder."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deqgen.training import (
    CheckpointError,
    Denoising,
    Ema,
    TrajectoryLoss,
    load_checkpoint,
    save_checkpoint,
)
from deqgen.training.order import batch_indices, cut, step_generator
from deqgen.training.run_folder import RunFolderError, Stopwatch, claim_folder
from deqgen.training.schedule import learning_rate
from deqgen.training.stats import Stats, read_stats
from tests.training.toy import config


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_every_deck_holds_each_example_once(count: int, batch: int, seed: int) -> None:
    steps = math.ceil(3 * count / batch)
    dealt = np.concatenate([batch_indices(count, batch, seed, step) for step in range(steps)])
    for start in range(0, 3 * count, count):
        assert sorted(dealt[start : start + count]) == list(range(count))


def test_order_depends_on_seed_and_deck() -> None:
    first, second = batch_indices(50, 100, 0, 0).reshape(2, 50)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batch_indices(50, 50, 1, 0))


def test_neighbouring_seeds_and_steps_draw_different_numbers() -> None:
    draws = {
        tuple(torch.rand(3, generator=step_generator(seed, step)).tolist())
        for seed in range(5)
        for step in range(5)
    }
    assert len(draws) == 25


def test_the_first_part_draws_what_an_uncut_batch_always_drew() -> None:
    drawn = torch.randint(0, 2**31, (2,), generator=step_generator(7, 1000)).tolist()
    assert drawn == [835323961, 665405071]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_the_parts_of_all_processes_are_the_batch(
    processes: int, rounds: int, size: int, step: int
) -> None:
    parts = processes * rounds
    batch = batch_indices(17, parts * size, 3, step)
    shares = [
        part
        for rank in range(processes)
        for part in cut(batch, parts, 3, step, rank=rank, processes=processes)
    ]
    assert sorted(part.number for part in shares) == list(range(parts))
    shares.sort(key=lambda part: part.number)
    assert np.array_equal(np.concatenate([part.indices for part in shares]), batch)
    draws = {float(torch.rand((), generator=part.generator)) for part in shares}
    assert len(draws) == parts
    alone = cut(batch, parts, 3, step, rank=0, processes=1)
    assert {float(torch.rand((), generator=part.generator)) for part in alone} == draws


def test_schedules() -> None:
    warm = config(images=800, warmup_images=80, learning_rate=1.0)
    assert learning_rate(warm, 0) == pytest.approx(0.1)
    assert learning_rate(warm, 72) == learning_rate(warm, 400) == 1.0
    cosine = config(images=800, learning_rate=1.0, decay="cosine")
    assert learning_rate(cosine, 400) == pytest.approx(0.5)
    assert learning_rate(cosine, 800) == pytest.approx(0.0)
    root = config(images=800, learning_rate=1.0, decay="inverse-sqrt", reference_images=100)
    assert learning_rate(root, 100) == 1.0
    assert learning_rate(root, 400) == pytest.approx(0.5)


def scalar(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.tensor([value], dtype=dtype)))
    model.register_buffer("count", torch.tensor(0))
    return model


def test_after_its_half_life_a_weight_counts_half() -> None:
    model = scalar(0.0)
    ema = Ema(model, half_life=100, ramp=0)
    with torch.no_grad():
        model.get_parameter("w").fill_(1.0)
    for images in range(10, 101, 10):
        ema.update(model, images, 10)
    assert float(ema.model.get_parameter("w")) == pytest.approx(0.5, abs=1e-6)


def test_the_ramp_forgets_the_initial_weights() -> None:
    model = scalar(0.0)
    ema = Ema(model, half_life=10**9, ramp=0.05)
    with torch.no_grad():
        model.get_parameter("w").fill_(1.0)
    for images in range(10, 2001, 10):
        ema.update(model, images, 10)
    assert float(ema.model.get_parameter("w")) > 0.999


def test_the_power_function_average_has_the_published_profile() -> None:
    """Equations 1 and 3 of EDM2: of a weight that grows as t, and the widths that it names."""
    model, power = scalar(-5.0), 6.94
    ema = Ema(model, half_life=1, power=power)
    for step in range(1, 2001):
        with torch.no_grad():
            model.get_parameter("w").fill_(step / 2000)
        ema.update(model, 10 * step, 10)
    average = float(ema.model.get_parameter("w"))
    assert average == pytest.approx((power + 1) / (power + 2), rel=1e-3)
    for published, exponent in ((0.10, 6.94), (0.05, 16.97)):
        width = math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))
        assert width == pytest.approx(published, rel=1e-3)


def test_the_average_does_not_stall_in_bfloat16() -> None:
    """The step 1e-4 is below bfloat16's resolution: kept in it, the average would never move."""
    model = scalar(1.0, torch.bfloat16)
    ema = Ema(model, half_life=693_147, ramp=0)
    with torch.no_grad():
        model.get_parameter("w").fill_(2.0)
    for step in range(1000):
        ema.update(model, 100 * (step + 1), 100)
    average = ema.model.get_parameter("w")
    assert average.dtype == torch.float32
    assert float(average) == pytest.approx(2.0 - math.exp(-0.1), abs=1e-4)


def test_buffers_are_copied_and_the_state_round_trips() -> None:
    model = scalar(1.0)
    ema = Ema(model, half_life=100)
    model.get_buffer("count").fill_(7)
    ema.update(model, 10, 10)
    other = Ema(scalar(0.0), half_life=100)
    other.load_state_dict(ema.state_dict())
    assert int(other.model.get_buffer("count")) == 7
    assert set(ema.state_dict()) == {"w", "count"}


def test_the_published_loss() -> None:
    target = torch.zeros(2, 3, 4, 4)
    images = [torch.full_like(target, float(value)) for value in (6, 5, 4, 3, 2, 1)]
    expected = sum(0.8 ** (5 - k) * (6 - k) for k in range(6))
    loss = TrajectoryLoss()
    assert float(loss(images, target)) == pytest.approx(expected, rel=1e-6)
    assert loss.total_weight(6) == pytest.approx(sum(0.8**k for k in range(6)))
    assert float(TrajectoryLoss(distance="l2")(images[:1], target)) == pytest.approx(36.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"decay": 0.0}, r"decay must lie in \(0, 1\]"), ({"distance": "l3"}, "one of l1, l2, huber")],
)
def test_bad_losses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryLoss(**options)


def test_a_loss_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        TrajectoryLoss()([torch.zeros(1, 3, 4, 4)], torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="at least one"):
        TrajectoryLoss()([], torch.zeros(2, 3, 4, 4))


def test_label_dropout_and_flips_of_the_denoising_objective() -> None:
    images = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    images[..., 1] = 255
    labels = torch.arange(400) % 3
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(label)
        return x

    objective = Denoising(images, labels, num_classes=3, label_dropout=0.25)
    model = nn.Module()
    model.forward = network  # type: ignore[method-assign]
    objective.loss(model, np.arange(400), torch.Generator().manual_seed(0))
    dropped = seen[0] == 3
    assert 60 < int(dropped.sum()) < 140
    assert torch.equal(seen[0][~dropped], labels[~dropped])


def test_statistics_drop_rows_beyond_the_checkpoint_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    stats = Stats(path)
    for images in (10, 20, 30):
        stats.write({"images": images, "loss": images / 4})
        stats.write({"images": images, "fid": 3.0})
    with path.open("a") as file:
        file.write('{"images": 40, "lo')
    assert [row["images"] for row in read_stats(path)] == [10, 10, 20, 20, 30, 30]
    stats = Stats(path, 20)
    assert [row["images"] for row in read_stats(path)] == [10, 10, 20, 20]
    assert stats.last_loss == 5.0 and stats.hooks_ran_at == 20
    assert read_stats(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "damage",
    [b"{bad", b"\0\0\0", b'{"images": 20, "\xff', b'{"images": "20"}'],
    ids=["torn", "zeros", "bytes", "text"],
)
def test_a_damaged_row_is_named_and_the_others_stay(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "stats.jsonl"
    stats = Stats(path)
    for images in (10, 20, 30, 40):
        stats.write({"images": images, "loss": images / 4})
    stats.write({"images": 40, "fid": 3.0})
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[2], damage, lines[4], b""]))
    with pytest.warns(UserWarning, match=r"stats.jsonl, .* left out: line 2, 4$") as said:
        stats = Stats(path, 40)
    assert len(said) == 1
    assert [row["images"] for row in read_stats(path)] == [10, 30, 40]
    assert stats.hooks_ran_at == 40 and stats.last_loss == 7.5


def test_what_a_killed_writer_of_statistics_left_is_removed(tmp_path: Path) -> None:
    left, other = tmp_path / ".stats.jsonl.0123abcd.tmp", tmp_path / ".mine.0123abcd.tmp"
    left.touch()
    other.touch()
    Stats(tmp_path / "stats.jsonl")
    assert other.exists() and not left.exists()


def test_a_truncated_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Payload()}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"images": 1})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"images": 2})
    assert load_checkpoint(path)["images"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_folder_belongs_to_one_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim_folder(folder, {"seed": 0, "widths": (1, 2)})
    claim_folder(folder, {"seed": 0, "widths": (1, 2)})
    with pytest.raises(RunFolderError, match="seed was 0 and is now 1"):
        claim_folder(folder, {"seed": 1, "widths": (1, 2)})
    (folder / "config.json").write_text("{")
    with pytest.raises(RunFolderError, match="damaged"):
        claim_folder(folder, {"seed": 0})


def test_a_folder_with_other_files_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="not the folder of a run"):
        claim_folder(tmp_path, {})
    with pytest.raises(RunFolderError, match="is a file"):
        claim_folder(tmp_path / "thesis.tex", {})


def test_a_stopwatch_goes_on_after_an_interruption(tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text(json.dumps({"train": 100.0}))
    with pytest.raises(KeyboardInterrupt), Stopwatch(tmp_path).stage("train"):
        raise KeyboardInterrupt
    assert 100.0 < Stopwatch(tmp_path).seconds["train"] < 110.0
