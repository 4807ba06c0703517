"""The statistics of a run: a file of JSON lines that survives interruption and resumption."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from deqgen.atomic import flush, tidy, write_text

Row = dict[str, float]


class Stats:
    """Append rows to ``stats.jsonl``: one JSON object a line, all values numbers.

    A row of the training has ``images``, ``loss``, ``learning_rate``, ``gradient_norm`` and
    ``seconds``; one of the hooks has ``images``, ``seconds`` and what they returned, but no loss.

    Args:
        path: the file; created if need be.
        images: images seen at the checkpoint the run continues from. Rows beyond it are dropped:
            the run is about to write them again.

    Attributes:
        last_loss: of the last row of the training; NaN before the first.
        hooks_ran_at: images of the last row of the hooks; 0 before the first.

    Raises:
        OSError: the disk is full or not writable.
    """

    def __init__(self, path: str | Path, images: int = 0) -> None:
        self.path = Path(path)
        kept = [row for row in read_stats(self.path) if row["images"] <= images]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tidy(self.path)
        write_text(self.path, "".join(map(_line, kept)))
        losses = [row["loss"] for row in kept if "loss" in row]
        self.last_loss = losses[-1] if losses else math.nan
        self.hooks_ran_at = max((row["images"] for row in kept if "loss" not in row), default=0)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        if "loss" in row:
            self.last_loss = row["loss"]
        else:
            self.hooks_ran_at = row["images"]

    def flush(self) -> None:
        """Wait until all rows are on the disk: no checkpoint may be there without those before."""
        with suppress(FileNotFoundError):  # somebody has deleted it
            flush(self.path)


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(dict(row)) + "\n"


def read_stats(path: str | Path) -> list[Row]:
    """Rows of a file of statistics; none if there is no file.

    A last line that a crash cut short is left out. So is any other that is damaged, and one
    warning names them.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    rows = [_row(line) for line in lines]
    damaged = [str(number) for number, row in enumerate(rows[:-1], 1) if row is None]
    if damaged:
        said = f"of {path}, what is damaged is left out: line {', '.join(damaged)}"
        warnings.warn(said, stacklevel=2)
    return [row for row in rows if row is not None]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode("utf-8"))
        return {"images": row["images"] + 0, **row}  # a number, by which rows are compared
    except (ValueError, KeyError, TypeError):
        return None
