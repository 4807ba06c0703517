"""The numbers of a run that came from looking at its images: one JSON object a line.

A line holds ``images`` (seen so far), ``numbers`` (name to value) and ``fingerprint``, which says
what the numbers are measured on and with; without it they compare with nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deqgen.atomic import write_text

EVALUATIONS = "evaluations.jsonl"


def add_evaluation(
    path: str | Path, images: int, numbers: Mapping[str, float], fingerprint: Mapping[str, Any]
) -> None:
    """Add a line; those of as many images or more, from before a resumption, are dropped."""
    kept = [line for line in read_evaluations(path) if line["images"] < images]
    lines = [*kept, {"images": images, "numbers": numbers, "fingerprint": fingerprint}]
    write_text(Path(path), "".join(json.dumps(line) + "\n" for line in lines))


def read_evaluations(path: str | Path) -> list[dict[str, Any]]:
    """All lines; none if there is no file. Damaged ones are left out, with a warning."""
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line for line in map(_parsed, lines) if line is not None]
    if len(found) < len(lines):
        count = f"{len(lines) - len(found)} of {len(lines)} lines"
        warnings.warn(f"{count} of {path} are damaged and left out", stacklevel=2)
    return found


def _parsed(line: str) -> dict[str, Any] | None:
    """What a line says; None if it is not as :func:`add_evaluation` writes them."""
    try:
        found = json.loads(line)
        sound = (
            isinstance(found["images"], int)
            and all(isinstance(value, int | float) for value in found["numbers"].values())
            and isinstance(found["fingerprint"], dict)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if sound else None
