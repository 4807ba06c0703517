"""examples/early_exit.py, run small on an untrained model that contracts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deqgen.models import create_model, save_model
from tests.examples.running import Done, here

pytestmark = pytest.mark.timeout(300)


def run(*arguments: object) -> Done:
    return here("early_exit.py", *arguments)


def test_work_falls_with_the_tolerance(tmp_path: Path) -> None:
    options = {"width": 16, "scales": 2, "groups": 4, "patch_size": 4, "num_classes": 10}
    model = create_model("DEQ-UNet-T", **options)
    with torch.no_grad():
        model.decoder.conv.weight.fill_(0.01)
    saved = save_model(model, tmp_path / "student.safetensors")
    out = tmp_path / "new" / "out"
    done = run(saved, "--rtol", 0.1, 0.01, "--count", 24, "--batch-size", 12, "--output-dir", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "early_exit.json").read_text())
    assert [row["rtol"] for row in rows] == [0.0, 0.1, 0.01]
    whole, loose, tight = (row["evaluations"] for row in rows)
    assert loose < tight < whole == 12
    for row in rows:
        assert abs(sum(row["exits"].values()) - 1) < 1e-9
        assert abs(row["saved"] - (1 - row["evaluations"] / whole)) < 1e-9
    assert (out / "early_exit.png").stat().st_size > 10_000
    assert done.stdout.count("fd_cifar10") == 3


def test_an_embedded_student_has_a_name(tmp_path: Path) -> None:
    done = run("get-nano-cifar10", "--rtol", 0.4, "--count", 4, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    whole, early = json.loads((tmp_path / "early_exit.json").read_text())
    assert (whole["evaluations"], early["evaluations"]) == (6, 3)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    vit = save_model(
        create_model("ViT-N/8", depth=1, width=32, heads=2), tmp_path / "v.safetensors"
    )
    for arguments, message in (
        ((tmp_path / "none.safetensors",), "there is no model at"),
        ((vit,), "which has no equilibrium"),
        ((vit, "--count", 1), "--count must be at least 2"),
    ):
        done = run(*arguments, "--output-dir", tmp_path / "o")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert message in done.stderr
