"""Checks of the options that several methods share."""

from __future__ import annotations

import math

from deqgen_solvers.errors import OptionError, OptionTypeError, nearest


def check_damping(method: str, damping: float) -> None:
    """Raise unless ``damping`` is a real number in (0, 1]."""
    _check_real(method, "damping", damping)
    if not 0 < damping <= 1:
        raise OptionError(
            f"{method}: damping must lie in (0, 1], where 1 is undamped; got {damping!r}."
        )


def check_count(method: str, name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{method}: {name} must be a whole number, got {value!r}.")
    if value < least:
        raise OptionError(f"{method}: {name} must be at least {least}, got {value!r}.")


def check_flag(method: str, name: str, value: bool) -> None:
    """Raise unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{method}: {name} must be True or False, got {value!r}.")


def check_choice(method: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choices = " or ".join(map(repr, allowed))
        hint = nearest(str(value), allowed)
        raise OptionError(f"{method}: {name} must be {choices}, got {value!r}.{hint}")


def check_forcing(method: str, forcing: float | None) -> None:
    """Raise unless ``forcing`` is None or a real number in (0, 1)."""
    if forcing is None:
        return
    _check_real(method, "forcing", forcing)
    if not 0 < forcing < 1:
        raise OptionError(f"{method}: forcing must be None or lie in (0, 1), got {forcing!r}.")


def check_memory(method: str, memory: int) -> None:
    """Raise unless ``memory`` is a whole number >= 1."""
    check_count(method, "memory", memory)


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
