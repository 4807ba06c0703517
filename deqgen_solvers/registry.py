"""Names of solvers: ours, yours, and those that other packages bring along.

A third-party package adds a solver without being imported by naming it in its ``pyproject.toml``::

    [project.entry-points."deqgen.solvers"]
    chebyshev = "my_package.chebyshev:Chebyshev"

It is loaded when its name is first asked for, so a broken package disturbs nobody else.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from deqgen_solvers.errors import (
    MissingPackageError,
    OptionError,
    OptionTypeError,
    UnknownSolverError,
    nearest,
)
from deqgen_solvers.protocol import Solver

ENTRY_POINT_GROUP = "deqgen.solvers"

F = TypeVar("F", bound=Callable[..., Solver[Any]])

_REGISTERED: dict[str, Callable[..., Solver[Any]]] = {}
_REQUIRED: dict[str, str] = {}  # name of a solver -> package that it cannot do without


def register_solver(name: str, *, requires: str | None = None) -> Callable[[F], F]:
    """Class decorator: make a solver known as ``name``.

    Args:
        name: what ``make_solver`` will know it by.
        requires: a package that the solver imports when it is built. Where that is not installed
            the name is not listed, and asking for it raises ``MissingPackageError``.

    Raises:
        OptionError: the name is empty, or taken by something else.
    """

    if not name:
        raise OptionError("register_solver: the name is empty.")

    def register(factory: F) -> F:
        if _REGISTERED.get(name, factory) is not factory:
            taken = _REGISTERED[name]
            raise OptionError(f"register_solver: {name!r} is already the name of {taken!r}.")
        _REGISTERED[name] = factory
        if requires is not None:
            _REQUIRED[name] = requires
        return factory

    return register


def available_solvers() -> list[str]:
    """Return every name that ``make_solver`` accepts, sorted; nothing is loaded for it."""
    return sorted({*(name for name in _REGISTERED if _missing(name) is None), *_installed()})


def make_solver(solver: str | Solver[Any], **options: Any) -> Solver[Any]:
    """Build a solver by name, or pass an object through.

    Args:
        solver: a name out of ``available_solvers()``, or a solver object (then without options).
        options: fields of the solver, for example ``memory=5``.

    Raises:
        UnknownSolverError: no solver has this name.
        MissingPackageError: the solver needs a package that is not installed.
        OptionTypeError: an option that the solver does not have, options beside an object, or
            something that is neither a name nor a solver.
        OptionError: an option out of range.

    Example:
        >>> make_solver("anderson", memory=5).memory
        5
    """
    if isinstance(solver, str):
        factory = _find(solver)
        _check_names(solver, factory, options)
        return factory(**options)
    if isinstance(solver, type) or not isinstance(solver, Solver):
        hint = f" Did you mean {solver.__name__}()?" if isinstance(solver, type) else ""
        raise OptionTypeError(
            f"solver: expected a name or an object with init and step, got {solver!r}.{hint}"
        )
    if options:
        raise OptionTypeError(f"make_solver: {solver!r} is built; give it {sorted(options)} there.")
    return solver


def registered_name(solver: Solver[Any]) -> str | None:
    """The name under which :func:`make_solver` builds such objects; None where there is none."""
    kind = type(solver)
    place = f"{kind.__module__}:{kind.__qualname__}"
    own = (name for name, factory in _REGISTERED.items() if factory is kind)
    brought = (name for name, point in _installed().items() if point.value == place)
    return next(own, None) or next(brought, None)


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _missing(name: str) -> str | None:
    """The package that a registered solver lacks, if any; looked for, not imported."""
    package = _REQUIRED.get(name)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return package


def _find(name: str) -> Callable[..., Solver[Any]]:
    if name not in _REGISTERED:
        point = _installed().get(name)
        if point is None:
            names = available_solvers()
            raise UnknownSolverError(
                f"No solver is called {name!r}.{nearest(name, names)} Available: {names}."
            )
        # The package may have registered the name itself while being loaded.
        _REGISTERED.setdefault(name, point.load())
    package = _missing(name)
    if package is not None:
        raise MissingPackageError(f"Solver {name!r}", package)
    return _REGISTERED[name]


def _check_names(name: str, factory: Callable[..., Solver[Any]], options: dict[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            allowed = sorted(parameters)
            raise OptionTypeError(
                f"Solver {name!r} has no option {option!r}.{nearest(option, allowed)} "
                f"It has: {allowed}."
            )
