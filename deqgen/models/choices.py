"""Solvers and gradient estimators in a config, as JSON and back.

A name stays a name. An object becomes its registered name and the options that differ from the
defaults::

    Anderson(memory=8)         {"solver": "anderson", "options": {"memory": 8}}
    Unrolled(6, every=2)       {"gradient": "unrolled", "options": {"steps": 6, "every": 2}}
    Tolerance(rtol=1e-3)       {"stopping": "tolerance", "options": {"rtol": 0.001}}

Options may hold such objects again, as ``Implicit(solver=GMRES(restart=30))`` does. Fields that do
not count when two objects are compared (a generator, a warm start) are state and are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from deqgen.gradients import GradientEstimator, make_gradient
from deqgen.gradients.registry import registered_name as gradient_name
from deqgen.models.errors import UnsavableError
from deqgen_solvers import Solver, Tolerance, make_solver
from deqgen_solvers.errors import nearest
from deqgen_solvers.registry import registered_name as solver_name


def _make_tolerance(name: str, **options: Any) -> Tolerance:
    if name != "tolerance":
        raise ValueError(f"unknown stopping rule {name!r}. Available: tolerance.")
    for option in options:
        if option not in ("atol", "rtol"):
            hint = nearest(option, ("atol", "rtol"))
            raise TypeError(f"Tolerance has no option {option!r}.{hint} Options: atol, rtol.")
    return Tolerance(**options)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "solver": make_solver,
    "gradient": make_gradient,
    "stopping": _make_tolerance,
}


def encode(value: Any, where: str) -> Any:
    """Turn the value of a config's field into JSON data.

    Args:
        value: a number, a name, a registered object, or a list or dict of these.
        where: what the value is, for the message: ``"GETConfig.solver"``.

    Raises:
        UnsavableError: (a TypeError) JSON cannot hold it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, tuple | list):
        return [encode(item, where) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    kind, name = _registration(value)
    if name is None or not dataclasses.is_dataclass(value):
        raise UnsavableError(
            f"{where} is {value!r}, which a file cannot hold: a config keeps numbers, names, and "
            "objects of a registered dataclass (register_solver, register_gradient). Leave it out "
            "before saving and set it again after loading."
        )
    return {kind: name, "options": _options(value, where)}


def decode(value: Any) -> Any:
    """Undo :func:`encode`; lists become tuples, and what is no JSON data is returned as it is.

    Raises:
        ValueError: a name that is not registered here, or an option out of its range.
        TypeError: an option that does not exist.
        MissingPackageError: a solver that needs a package which is not installed.
    """
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    inner = {key: decode(item) for key, item in value.items()}
    for kind, build in _BUILDERS.items():
        if value.keys() == {kind, "options"} and isinstance(value["options"], dict):
            return build(value[kind], **inner["options"])
    return inner


def _registration(value: Any) -> tuple[str, str | None]:
    """Which registry knows the type of ``value``, and its name there."""
    if isinstance(value, Tolerance):
        return "stopping", "tolerance"
    if isinstance(value, GradientEstimator):
        return "gradient", gradient_name(value)
    return "solver", solver_name(value) if isinstance(value, Solver) else None


def _options(value: Any, where: str) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    options = {}
    for field in dataclasses.fields(value):
        if not (field.init and field.compare):
            continue
        default, now = _default(field), getattr(value, field.name)
        if now is default:
            continue
        # Encoded first: what passes is plain data, so that comparing it gives a truth value.
        encoded = encode(now, f"{where}.{field.name}")
        if now != default:
            options[field.name] = encoded
    return options


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
