"""Gradient estimators by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from deqgen.gradients.protocol import GradientEstimator
from deqgen_solvers.errors import nearest

_TABLE: dict[str, Callable[..., GradientEstimator]] = {}
T = TypeVar("T", bound=Callable[..., Any])


def register_gradient(name: str) -> Callable[[T], T]:
    """Class decorator: make an estimator available under ``name`` (lower case).

    Raises:
        ValueError: if the name is taken.
    """

    def add(estimator: T) -> T:
        if name in _TABLE:
            raise ValueError(f"a gradient estimator named {name!r} exists already.")
        _TABLE[name] = estimator
        return estimator

    return add


def available_gradients() -> list[str]:
    """Names that :func:`make_gradient` knows, sorted."""
    return sorted(_TABLE)


def make_gradient(gradient: str | GradientEstimator, **options: Any) -> GradientEstimator:
    """An estimator from its name and options; an estimator object is returned as it is.

    Raises:
        ValueError: an unknown name, or an option out of its range.
        TypeError: an unknown option, options beside an object, or something that is no estimator.

    Example:
        >>> make_gradient("phantom", steps=3)
        Phantom(steps=3, damping=0.5, mode='unroll', every=None)
    """
    if not isinstance(gradient, str):
        if options:
            raise TypeError(f"options {sorted(options)} go with a name, not with {gradient!r}.")
        if isinstance(gradient, type) or not isinstance(gradient, GradientEstimator):
            raise TypeError(
                f"{gradient!r} is no gradient estimator: give one of {available_gradients()}, "
                "or an object such as Unrolled(6)."
            )
        return gradient
    if gradient not in _TABLE:
        raise ValueError(
            f"unknown gradient estimator {gradient!r}.{nearest(gradient, _TABLE)} "
            f"Available: {', '.join(available_gradients())}."
        )
    entry = _TABLE[gradient]
    if isinstance(entry, type) and dataclasses.is_dataclass(entry):
        allowed = [field.name for field in dataclasses.fields(entry) if field.init]
        for option in options:
            if option not in allowed:
                raise TypeError(
                    f"gradient {gradient!r} has no option {option!r}.{nearest(option, allowed)} "
                    f"Allowed: {', '.join(allowed) or 'none'}."
                )
    return entry(**options)


def registered_name(gradient: GradientEstimator) -> str | None:
    """The name under which :func:`make_gradient` builds such objects; None where there is none."""
    return next((name for name, entry in _TABLE.items() if entry is type(gradient)), None)
