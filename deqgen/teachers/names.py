"""Turn a name and options into an object, or into one sentence that says what was meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, value: object, allowed: Iterable[str]) -> str:
    """Say that ``value`` is no ``kind``, name the nearest match and list what there is."""
    choices = sorted(allowed)
    lowered = {choice.lower(): choice for choice in choices}  # a slip of case is no other name
    near = get_close_matches(str(value).lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[near[0]]!r}?" if near else ""
    return f"unknown {kind} {value!r}.{hint} Available: {', '.join(choices) or 'none'}."


def build(
    kind: str, table: Mapping[str, Callable[..., T]], name: str, options: dict[str, Any]
) -> T:
    """Build ``table[name](**options)``.

    Raises:
        ValueError: ``name`` is not in the table.
        TypeError: an option that this entry does not have; the message names the nearest one.
    """
    if name not in table:
        raise ValueError(unknown(kind, name, table))
    entry = table[name]
    if isinstance(entry, type) and dataclasses.is_dataclass(entry):
        fields = [field.name for field in dataclasses.fields(entry)]
        for option in options:
            if option not in fields:
                raise TypeError(unknown(f"option of {kind} {name!r}", option, fields))
    return entry(**options)
