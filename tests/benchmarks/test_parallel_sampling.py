"""The benchmark of parallel sampling runs and reports what was counted, on a small problem."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deqgen.teachers import Sampler, sample
from tests.teachers.gaussian import noise, problem


def test_a_row_says_what_sampling_took(load) -> None:
    benchmark: ModuleType = load("parallel_sampling")
    sampler, label = Sampler(method="euler", steps=16), torch.tensor([0, 1])
    serial = sample(problem(), noise(2), label, sampler=sampler)
    options = {"solver": "picard", "tol": 1e-6, "window": None}
    row = benchmark.compare(problem(), noise(2), label, serial, sampler, options)
    assert (row["method"], row["steps"], row["serial"]) == ("euler", 16, 16)
    assert row["in a row"] == row["sweeps"] < 16 < row["an image"]
    assert row["ratio"] == 16 / row["in a row"]
    assert row["times serial"] == row["an image"] / 16
    assert 0 < row["difference"] < 1e-5


def test_the_table_is_written(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    benchmark: ModuleType = load("parallel_sampling")
    monkeypatch.setattr(benchmark, "CASES", (("dpmpp-2m", 3, (None,)),))
    monkeypatch.setattr(benchmark, "IMAGES", 1)
    output = tmp_path / "numbers.json"
    benchmark.main(benchmark.Options(rounds=1, output=output))
    rows = json.loads(output.read_text())["sampling"]
    assert [(row["solver"], row["tol"]) for row in rows] == [
        ("picard", 0.01),
        ("picard", 0.001),
        ("anderson", 0.01),
        ("anderson", 0.001),
    ]
    assert all(row["in a row"] <= row["serial"] == 3 for row in rows if row["solver"] == "picard")
    assert "| dpmpp-2m | 3 " in output.with_suffix(".md").read_text()
