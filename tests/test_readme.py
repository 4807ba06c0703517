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


def test_what_holds_is_what_was_measured() -> None:
    """Each "A against B" of the table is that of fd_cifar10 in the computed claims."""
    results = json.loads((REPOSITORY / "docs/results/scaling/results.json").read_text())
    claims = {claim["claim"]: claim for claim in results["claims"]}
    start = "Parameter efficiency: GET "
    table = {
        "a GET is better than a ViT of equal": "better than a ViT of equal parameters",
        "the same after as much": "better than a ViT of equal parameters, after as much training "
        "compute",
        "it matches a ViT of five": "matches a ViT of five times the parameters",
        "it matches a ViT of equal FLOPs": "matches a ViT of equal FLOPs",
    }
    for row, claim in table.items():
        computed = claims[f"{start}{claim}"]
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {row}")]
        here, verdict = line.split("|")[2:4]
        printed = re.findall(r"([\d.]+) against ([\d.]+)", here)
        (found,) = re.findall(
            r"fd_cifar10: GET ([\d.]+)[^;]* against ViT ([\d.]+)", computed["here"]
        )
        assert printed == [tuple(f"{float(number):.1f}" for number in found)], row
        assert verdict.strip().startswith(computed["verdict"]), row
