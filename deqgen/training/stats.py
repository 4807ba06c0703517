"""The statistics of a run: a file of JSON lines that survives interruption and resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from deqgen.atomic import write_text

Row = dict[str, float]


class Stats:
    """Append rows to ``stats.jsonl``: one JSON object a line, all values numbers.

    A row of the training has ``images``, ``loss``, ``learning_rate``, ``gradient_norm`` and
    ``seconds``; one of the hooks has ``images``, ``seconds`` and what they returned, but no loss.

    Args:
        path: the file; created if need be.
        images: images seen at the checkpoint the run continues from. Rows beyond it are dropped:
            the run is about to write them again.
        writes: false in all but one of several processes, which then only read.

    Attributes:
        last_loss: of the last row of the training; NaN before the first.
        hooks_ran_at: images of the last row of the hooks; 0 before the first.
    """

    def __init__(self, path: str | Path, images: int = 0, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        kept = [row for row in read_stats(self.path) if row["images"] <= images]
        if writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(map(_line, kept)))
        losses = [row["loss"] for row in kept if "loss" in row]
        self.last_loss = losses[-1] if losses else math.nan
        self.hooks_ran_at = max((row["images"] for row in kept if "loss" not in row), default=0)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row."""
        if "loss" in row:
            self.last_loss = row["loss"]
        else:
            self.hooks_ran_at = row["images"]
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(dict(row)) + "\n"


def read_stats(path: str | Path) -> list[Row]:
    """Rows of a file of statistics; none if there is no file.

    A last line that a crash cut short is left out.
    """
    path = Path(path)
    if not path.is_file():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            rows.append({"images": row["images"], **row})
        except (ValueError, KeyError, TypeError):
            break
    return rows
