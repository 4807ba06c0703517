"""The benchmark of training and evaluation runs and measures what it says, on small models."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from deqgen.evaluation.features import load_features
from deqgen.evaluation.frechet import load_reference
from deqgen.training.stats import read_stats


@pytest.fixture
def step(load: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: ModuleType = load("training_step")
    for name, value in (("MODEL", "GET-N/8"), ("BATCH", 2), ("PAIRS", 8)):
        monkeypatch.setattr(module, name, value)
    return module


def test_both_steps_train_the_same_model(step: ModuleType, tmp_path: Path) -> None:
    pairs = step.make_pairs(tmp_path)
    bare, trained = step.Bare(pairs), step.Trained(step.student(), pairs, tmp_path / "run")
    before = [parameter.clone() for parameter in bare.model.parameters()]
    for each in (bare, trained):
        each()
    for old, a, b in zip(
        before, bare.model.parameters(), trained.run.model.parameters(), strict=True
    ):
        assert a.shape == b.shape and torch.equal(a, old) == torch.equal(b, old)
    assert [row["images"] for row in read_stats(tmp_path / "run" / "stats.jsonl")] == [2]


def test_the_tables_of_overhead_and_average(step: ModuleType, load: Any) -> None:
    bare, *parts = load("training_overhead").overhead(1)
    assert [row["what"] for row in (bare, *parts)] == [
        "bare step",
        "trainer's step",
        "trainer's step, free model",
        "loader alone",
    ]
    trained, free, loader = (row["beyond a bare step, %"] for row in parts)
    assert trained == pytest.approx(100 * (parts[0]["ms"] / bare["ms"] - 1))
    assert free == pytest.approx(100 * parts[1]["ms"] / bare["ms"]) and 0 < loader < free
    (row,) = load("training_ema").average(1)
    assert row["%"] == pytest.approx(100 * row["average, ms"] / row["step, ms"]) and row["%"] > 0
    json.dumps([*parts, bare, row])


def test_the_table_of_evaluation(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: ModuleType = load("training_evaluation")
    monkeypatch.setattr(module, "BATCH", 8)
    row = module.row(load_features("cifar10"), load_reference(), 12, 1)
    assert row["ratio"] == row["evaluation, s"] / row["network alone, s"] > 0
    assert row["evaluation, s"] > row["of it scores, s"] > 0
    assert module.unknown_reference(load_features("cifar10")).covariance.shape == (320, 320)


@pytest.mark.slow
def test_two_processes_and_one(
    step: ModuleType, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: ModuleType = load("training_processes")
    monkeypatch.setattr(module, "STEPS", 3)
    one, two = module.processes(1)
    assert one["x the first"] == 1 and two["x the first"] == two["images/s"] / one["images/s"] > 0
