"""examples/export_student.py: the files of an embedded student, and what its card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from deqgen.models import create_model, load_model, save_model
from tests.commands.distilling import toy_pairs
from tests.examples.running import here

pytestmark = pytest.mark.timeout(300)


def test_the_files_and_the_card(tmp_path: Path) -> None:
    model = create_model("GET-N/8", width=32, heads=2, num_classes=3)
    student = save_model(model, tmp_path / "student.safetensors")
    pairs = toy_pairs(tmp_path / "pairs", side=32)
    out = tmp_path / "assets" / "tiny.safetensors"
    options = ["--training", "no images", "--name", "get-tiny", "--count", 16]
    done = here("export_student.py", student, "--pairs", pairs, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 0.6 * student.stat().st_size
    rounded = load_model(out)
    assert rounded.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], weight.half())
    card = out.with_suffix(".md").read_text()
    assert "# Model card: get-tiny" in card and "{" not in card
    assert "\nA class-conditional one-step generator of 32x32 colour images" in card
    assert (
        "| teacher | stub |" in card and "24 noise/image pairs of 7 evaluations each: 168" in card
    )
    printed = re.findall(r"(\w*fd|\w*score) ([\d.]+)", done.stdout)
    assert len(printed) == 4
    assert all(f" {number} |" in card for _, number in printed)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    wide = create_model("GET-N/8", width=32, heads=2)
    with torch.no_grad():
        wide.qkv_inj.weight.fill_(1e6)
    model = save_model(wide, tmp_path / "wide.safetensors")
    pairs = toy_pairs(tmp_path / "pairs")
    for arguments, message in (
        ((tmp_path / "none.safetensors",), "there is no model at"),
        ((model, "--count", 25), "--count must lie in 2..24"),
        ((model, "--out", tmp_path / "a.pt"), "--out is a .safetensors file"),
        ((model,), "is not finite in half precision"),
    ):
        done = here(
            "export_student.py",
            *("--pairs", pairs, "--training", "x", "--out", tmp_path / "o.safetensors"),
            *("--count", 4),
            *arguments,
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert message in done.stderr
