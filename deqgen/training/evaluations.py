"""The numbers of a run that came from looking at its images: one JSON object a line.

A line holds ``images`` (seen so far), ``numbers`` (name to value) and ``fingerprint``, which says
what the numbers are measured on and with; without it they compare with nothing.
"""

from __future__ import annotations

import json
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
    """All lines; none if there is no file."""
    path = Path(path)
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
