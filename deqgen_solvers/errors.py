"""Errors. A user's mistake is a ``ValueError`` or ``TypeError`` that says what to try instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deqgen_solvers.solution import Solution


class SolverError(Exception):
    """Anything that this package raises on purpose."""


class OptionError(SolverError, ValueError):
    """An option has a value outside its range."""


class OptionTypeError(SolverError, TypeError):
    """An option has the wrong type, or does not exist."""


class UnknownSolverError(OptionError):
    """No solver has this name."""


class MissingPackageError(SolverError, ImportError):
    """Something was asked for that needs a package which is not installed."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed; "
            f"install it with: pip install {package}",
            name=package,
        )


class StateError(SolverError, ValueError):
    """``z0``, ``args`` or what ``f`` returned does not fit: shape, dtype, device or structure."""


class StateTypeError(SolverError, TypeError):
    """``z0``, or what ``f`` returned, holds something that is not a floating-point tensor."""


class ForwardModeError(SolverError, RuntimeError):
    """A method asked f for a forward-mode derivative, and f has none."""


class ConvergenceError(SolverError, RuntimeError):
    """Some samples missed the tolerance and ``throw=True`` asked to hear about it.

    Attributes:
        solution: what was reached, complete; nothing is lost by catching the error.
    """

    def __init__(self, message: str, solution: Solution[Any]) -> None:
        super().__init__(message)
        self.solution = solution


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` (with the leading space), or nothing when no name is close."""
    match = difflib.get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
