"""The problems by name, each with the methods that are known to fail on it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from deqgen_solvers.errors import OptionError, OptionTypeError, nearest
from deqgen_solvers.problems.affine import (
    complex_contraction,
    diagonal,
    poisson,
    rotation,
    with_spectrum,
)
from deqgen_solvers.problems.cells import attention_cell, tanh_rnn, transformer_cell
from deqgen_solvers.problems.equations import (
    boundary_value,
    bratu,
    bratu_square,
    chandrasekhar,
)
from deqgen_solvers.problems.nonlinear import (
    constant,
    cosine,
    cubic,
    pipes,
    powell,
    tridiagonal,
    trigonometric,
    two_curves,
)
from deqgen_solvers.problems.problem import Problem


@dataclass(frozen=True)
class _Entry:
    """A constructor, the options that the name stands for, and who fails with these."""

    make: Callable[..., Problem]
    options: Mapping[str, Any] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


def _entry(
    make: Callable[..., Problem], *, fails: dict[str, str] | None = None, **options: Any
) -> _Entry:
    return _Entry(make, options, fails or {})


_LEFT = {"picard": "An eigenvalue lies left of -1, so that undamped steps overshoot."}
_RIGHT = {"picard": "An eigenvalue lies right of 1: each step leads away, damped or not."}
_OUTSIDE = {"picard": "Eigenvalues have a modulus above 1."}
_SCALE = "The first step is of length 1e4; nothing limits it."

_TABLE: dict[str, _Entry] = {
    # Affine contractions, normal, then not.
    "contraction 0.5": _entry(with_spectrum, low=-0.5, high=0.5),
    "contraction 0.9": _entry(with_spectrum, low=-0.9, high=0.9),
    "contraction 0.9, float32": _entry(with_spectrum, low=-0.9, high=0.9, dtype=torch.float32),
    "contraction 0.99": _entry(with_spectrum, low=-0.99, high=0.99, max_steps=1800),
    "contraction 0.999": _entry(
        with_spectrum,
        low=-0.999,
        high=0.999,
        max_steps=1000,
        fails={"picard": "Too slow: it gains a digit in 2300 steps."},
    ),
    "non-normal 0.8": _entry(with_spectrum, low=-0.8, high=0.8, skew=0.3),
    "non-normal 0.95": _entry(with_spectrum, low=-0.95, high=0.95, skew=0.2, max_steps=1000),
    "complex": _entry(complex_contraction),
    "complex, complex64": _entry(complex_contraction, dtype=torch.complex64),
    "scale": _entry(diagonal),
    # Affine maps beyond plain iteration.
    "expansion to the left": _entry(with_spectrum, low=-2.5, high=0.5, fails=_LEFT),
    "expansion to the right": _entry(with_spectrum, low=1.5, high=3.0, fails=_RIGHT),
    "rotation 0.9": _entry(rotation, radius=0.9),
    "rotation 1.1": _entry(
        rotation,
        radius=1.1,
        fails={**_OUTSIDE, "anderson-type-1": "Four differences do not see three pairs."},
    ),
    "poisson": _entry(poisson, fails=_LEFT),
    # Systems of the literature.
    "cosine": _entry(cosine),
    "constant": _entry(constant),
    "cubic": _entry(cubic, fails=_LEFT),
    "pipes": _entry(pipes, fails=_OUTSIDE),
    "two curves": _entry(two_curves),
    "powell": _entry(
        powell,
        fails=dict.fromkeys(("picard", "anderson", "anderson-type-1", "broyden", "gmres"), _SCALE),
    ),
    "trigonometric": _entry(trigonometric),
    "tridiagonal": _entry(tridiagonal, fails=_LEFT),
    "boundary value": _entry(boundary_value, max_steps=1000),
    "boundary value, integral": _entry(boundary_value, by_integral=True),
    "bratu": _entry(bratu),
    "bratu, square": _entry(bratu_square, max_steps=1000),
    "chandrasekhar": _entry(chandrasekhar),
    # Cells.
    "tanh 0.8": _entry(tanh_rnn, gain=0.8),
    "tanh 1.5": _entry(tanh_rnn, gain=1.5),
    "attention": _entry(attention_cell, fails={"picard": "The fixed point repels; it cycles."}),
    "transformer": _entry(transformer_cell),
}


def available_problems() -> list[str]:
    """Return every name that ``make_problem`` accepts, the easy ones of each kind first."""
    return list(_TABLE)


def make_problem(name: str, **options: Any) -> Problem:
    """Build a problem by name.

    Args:
        name: out of ``available_problems()``.
        options: arguments of its constructor, where the name's own do not suit: ``seed``, ``size``,
            ``batch``, ``dtype`` (float32 or float64; complex too for affine maps), ...; and fields
            of the `Problem`, such as ``max_steps``. The failures are those of the name without
            options; what causes them mostly stays.

    Raises:
        OptionError: no problem has this name.
        OptionTypeError: the problem has no such option.
    """
    if name not in _TABLE:
        names = available_problems()
        raise OptionError(
            f"No problem is called {name!r}.{nearest(str(name), names)} Available: {names}."
        )
    entry = _TABLE[name]
    own = [p.name for p in inspect.signature(entry.make).parameters.values() if p.name != "more"]
    allowed = sorted(
        {*own, *(f.name for f in dataclasses.fields(Problem))} - {"f", "z0", "args", "exact"}
    )
    for option in options:
        if option not in allowed:
            raise OptionTypeError(
                f"Problem {name!r} has no option {option!r}.{nearest(option, allowed)} "
                f"It has: {allowed}."
            )
    failures = MappingProxyType(dict(entry.failures))
    return entry.make(**{"failures": failures, **entry.options, **options})
