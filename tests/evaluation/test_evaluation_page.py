"""docs/evaluation.md leaves no metric out; its commands and its Python run in tests/docs."""

from __future__ import annotations

from pathlib import Path

from deqgen.evaluation import METRICS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_all_metrics_are_there() -> None:
    assert all(f"| `{name}` |" in TEXT for name in METRICS)
