"""Evaluations as a table for a terminal of a hundred columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deqgen.evaluation.result import Evaluation
from deqgen.evaluation.sweep import SweepRow

WIDTH = 100
_GAP = "  "
_DASH = "-"


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """One line a setting, or three (min, mean, max) where it was repeated.

    Columns: solver; most steps of it; the mean of the evaluations of the cell that an image took;
    then the metrics. What does not fit into a hundred columns goes into another table below.
    """
    columns: dict[str, list[str]] = {}
    for row in rows:
        for line in _setting_lines(row):
            for name, text in line.items():
                columns.setdefault(name, []).append(text)
    fixed = [name for name in ("solver", "max_steps", "nfe", "of") if name in columns]
    return _wrapped(columns, fixed)


def images_table(evaluation: Evaluation) -> str:
    """The metrics of a set of images, on one line."""
    line = {"images": f"{evaluation.fingerprint.images:,}", **_values(evaluation.metrics)}
    return _wrapped({name: [text] for name, text in line.items()}, ["images"])


def _setting_lines(row: SweepRow) -> list[dict[str, str]]:
    first = row.evaluations[0]
    count = len(row.evaluations)
    setting = {
        "solver": row.solver or ("the model's" if first.fingerprint.solver else _DASH),
        "max_steps": _number(row.max_steps or first.fingerprint.max_steps),
        "nfe": _number(first.nfe),
    }
    if count == 1:
        return [{**setting, **_values(first.metrics)}]
    spread = {name: each for name, each in row.spread.items() if not name.endswith("_std")}
    return [
        {
            **(setting if kind == "min" else dict.fromkeys(setting, "")),
            "of": f"{kind} of {count}",
            **_values({name: getattr(spread[name], kind) for name in spread}),
        }
        for kind in ("min", "mean", "max")
    ]


def _values(metrics: Mapping[str, float]) -> dict[str, str]:
    """Numbers as text, each with its standard deviation if it has one."""
    texts = {}
    for name, value in metrics.items():
        if not name.endswith("_std"):
            deviation = metrics.get(f"{name}_std")
            more = "" if deviation is None else f" ±{deviation:.2g}"
            texts[name] = f"{value:.4g}{more}"
    return texts


def _number(value: float | None) -> str:
    return _DASH if value is None else f"{value:.4g}"


def _wrapped(columns: Mapping[str, list[str]], fixed: Sequence[str]) -> str:
    """As many tables below each other as the width wants, each with the fixed columns."""
    width = {name: max(map(len, [name, *texts])) for name, texts in columns.items()}
    tables: list[list[str]] = [list(fixed)]
    for name in columns:
        if name in fixed:
            continue
        taken = sum(width[other] + len(_GAP) for other in tables[-1])
        if taken + width[name] > WIDTH and len(tables[-1]) > len(fixed):
            tables.append(list(fixed))
        tables[-1].append(name)
    return "\n\n".join(_table(names, columns, width) for names in tables)


def _table(names: Sequence[str], columns: Mapping[str, list[str]], width: Mapping[str, int]) -> str:
    lines = zip(*([name, *columns[name]] for name in names), strict=True)
    padded = (
        _GAP.join(
            text.ljust(width[name]) if name in ("solver", "of") else text.rjust(width[name])
            for name, text in zip(names, line, strict=True)
        )
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
