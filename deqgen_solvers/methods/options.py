"""Checks of the options that several methods share."""

from __future__ import annotations

import math

from deqgen_solvers.errors import OptionError, OptionTypeError


def check_damping(method: str, damping: float) -> None:
    """Raise unless ``damping`` is a real number in (0, 1]."""
    _check_real(method, "damping", damping)
    if not 0 < damping <= 1:
        raise OptionError(
            f"{method}: damping must lie in (0, 1], where 1 is undamped; got {damping!r}."
        )


def check_memory(method: str, memory: int) -> None:
    """Raise unless ``memory`` is a whole number >= 1."""
    if isinstance(memory, bool) or not isinstance(memory, int):
        raise OptionTypeError(f"{method}: memory must be a whole number, got {memory!r}.")
    if memory < 1:
        raise OptionError(f"{method}: memory must be at least 1, got {memory!r}.")


def check_ridge(method: str, ridge: float | None) -> None:
    """Raise unless ``ridge`` is None or a finite real number >= 0."""
    if ridge is None:
        return
    _check_real(method, "ridge", ridge)
    if not (math.isfinite(ridge) and ridge >= 0):
        raise OptionError(f"{method}: ridge must be finite and >= 0, got {ridge!r}.")


def _check_real(method: str, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{method}: {name} must be a real number, got {value!r}.")
