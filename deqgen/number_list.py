"""Whole numbers on a command line: ``0-63,100,200-210``."""

from __future__ import annotations

import re

_MOST = 10_000_000


def parse_numbers(text: str, what: str, limit: int) -> list[int]:
    """Read numbers and ranges, both ends included.

    Args:
        text: such as ``"0-63,100"``.
        what: what messages call it, such as ``"--seeds"``.
        limit: numbers lie below it.

    Raises:
        ValueError: another form, a range that runs backwards, a number that is too large or named
            twice, or more than ten million numbers.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        if match is None:
            raise ValueError(
                f"{what} must be numbers and ranges such as 0-63,100,200-210; got {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"{what}: the range {part.strip()} runs backwards")
        if last >= limit:
            raise ValueError(f"{what} must lie in 0..{limit - 1}, got {last}")
        if len(found) + last - first >= _MOST:
            raise ValueError(f"{what} may name {_MOST:,} numbers at most at a time, not {text!r}")
        found.extend(range(first, last + 1))
    if len(set(found)) < len(found):
        seen: set[int] = set()
        twice = next(each for each in found if each in seen or seen.add(each))  # type: ignore[func-returns-value]
        raise ValueError(f"{what} names {twice} twice")
    return found
