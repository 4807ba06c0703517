"""The README's numbers are those of the recorded run; tests/docs runs its code and commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CARDS = ("cifar10_teacher", "cifar10_classifier", "get_nano_cifar10")


@pytest.mark.parametrize("page", ["README.md", *(f"deqgen/assets/{n}.md" for n in CARDS)])
def test_no_number_is_still_missing(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    prose = re.sub(r"`[^`]*`", "", text)  # names of variables stand in backquotes
    assert re.findall(r"\b[A-Z]{3,}_[A-Z_]+\b|TODO|demo:begin", prose) == []


def test_the_table_is_that_of_the_recorded_run() -> None:
    metrics = json.loads((REPOSITORY / "docs/results/demo/metrics.json").read_text())
    row = next(line for line in TEXT.splitlines() if line.startswith("| fd_cifar10"))
    recorded = [f"{metrics[model]['fd_cifar10']:.2f}" for model in ("teacher", "get", "vit")]
    assert [cell.strip() for cell in row.split("|")[2:5]] == recorded
