"""The README's code runs as printed, and what it names is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CARDS = ("cifar10_teacher", "cifar10_classifier")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
def test_code_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["images"].shape == (4, 3, 32, 32)
    assert names["x"].grad is not None
    assert "4 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_links_lead_somewhere(link: str) -> None:
    assert (REPOSITORY / link).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?<!pairs )make ([a-z-]+)", TEXT))))
def test_make_targets_exist(target: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


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
