"""examples/teacher_budget.py: counted rows are the manifest's, published ones are told apart."""

from __future__ import annotations

import json
from pathlib import Path

from deqgen.data import write_pairs
from tests.data.stub import StubTeacher
from tests.examples.running import here


def test_rows_are_counted_or_published(tmp_path: Path) -> None:
    write_pairs(StubTeacher(), tmp_path / "mine", count=5)
    out = tmp_path / "out"
    done = here("teacher_budget.py", tmp_path / "mine", "--output-dir", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "teacher_budget.json").read_text())
    mine, *published = rows
    assert (mine["basis"], mine["evaluations"]) == ("counted", 5 * StubTeacher.nfe)
    assert [row["evaluations"] for row in published] == [
        35_000_000,
        70_000_000,
        819_200_000,
        819_200_000,
    ]
    assert {row["basis"] for row in published} == {"published", "computed"}
    assert "| stub, 5 pairs | 5 | 7 | 35 | counted | manifest of mine |" in done.stdout
    assert (out / "teacher_budget.md").read_text().endswith(f"\n\n{done.stdout}")
    assert (out / "teacher_budget.png").stat().st_size > 10_000


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    done = here("teacher_budget.py", tmp_path / "none", "--output-dir", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "teacher_budget: " in done.stderr and "none" in done.stderr
    assert not (tmp_path / "out").exists()
