"""The loss log of a run: a CSV file that survives interruption and resumption."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from deqgen.atomic import replacing


@dataclass(frozen=True)
class LogRow:
    """What one row says.

    Attributes:
        images: images seen at its end.
        loss: mean over the row's steps.
        learning_rate: of its last step.
        seconds: training time so far, over all sessions of the run, compilation included.
    """

    images: int
    loss: float
    learning_rate: float
    seconds: float


class LossLog:
    """Append rows to a CSV file.

    Args:
        path: the file; created with a header line.
        images: images seen at the checkpoint the run continues from. Rows beyond it are dropped:
            the run is about to write them again.
    """

    def __init__(self, path: str | Path, images: int = 0) -> None:
        self.path = Path(path)
        kept = [row for row in read_log(self.path) if row.images <= images]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(LogRow)])
            writer.writerows(_cells(row) for row in kept)
        self.last_loss = kept[-1].loss if kept else math.nan

    def write(self, row: LogRow) -> None:
        """Append one row."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(_cells(row))


def _cells(row: LogRow) -> list[str]:
    return [
        str(value) if isinstance(value, int) else f"{value:.6g}" for value in asdict(row).values()
    ]


def read_log(path: str | Path) -> list[LogRow]:
    """Rows of a log; none if there is no file. A last line that a crash cut short is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="") as file:
        for cells in csv.DictReader(file):
            try:
                rows.append(
                    LogRow(
                        int(cells["images"]),
                        float(cells["loss"]),
                        float(cells["learning_rate"]),
                        float(cells["seconds"]),
                    )
                )
            except (KeyError, TypeError, ValueError):
                break
    return rows
