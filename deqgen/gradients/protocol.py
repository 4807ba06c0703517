"""What a gradient estimator is. Read this file first.

An estimator decides how the fixed point z = f(z, *args) is reached while gradients are recorded,
and what autograd sees of it. It gets the solver as ``forward``, a function that it may call or
not: ``Implicit`` and ``Phantom`` call it without gradients and attach one or a few evaluations of
f; ``Unrolled`` runs f itself.

A class attribute ``references`` says what to cite for the estimator (:func:`deqgen.cite`): keys of
``deqgen/references.bib`` or, of your own, whole BibTeX entries.

Letters: B samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch

from deqgen_solvers import Solution, Tolerance, solve
from deqgen_solvers.protocol import Solver

State: TypeAlias = Any
"""A tensor (B, ...), or a nested tuple, list or dict of such tensors."""

Cell: TypeAlias = Callable[..., State]
"""f(z, *args) -> state of the structure, shapes and dtypes of z."""


class GradientError(RuntimeError):
    """A derivative was asked for that this estimator cannot give. No number is returned instead."""


class EquilibriumWarning(UserWarning):
    """A forward or backward solve stopped short of its tolerance, so gradients are off."""


@dataclass(frozen=True)
class Forward:
    """The solver with its settings, as an estimator receives it.

    Args:
        solver: name or object, as in :func:`deqgen_solvers.solve`.
        tol: when a sample has converged; None for a bare budget of ``max_steps`` evaluations.
        max_steps: most steps; f is evaluated at most ``max_steps + 1`` times.
        select: which iterate is returned, ``"best"`` or ``"last"``.
        compact: gather the rows that still run; then ``args`` hold one row a sample.
        trace: keep the residual of every step in ``solution.trace``; needs a tolerance.
    """

    solver: str | Solver[Any] = "anderson"
    tol: Tolerance | None = field(default_factory=Tolerance)
    max_steps: int = 50
    select: Literal["best", "last"] = "best"
    compact: bool = False
    trace: bool = False

    def __call__(self, f: Cell, z0: State, args: tuple[Any, ...] = ()) -> Solution[Any]:
        """Solve ``z = f(z, *args)`` from ``z0`` without recording gradients."""
        return _run(self, f, z0, args) if self.tol is None else _search(self, f, z0, args)


def _run(forward: Forward, f: Cell, z0: State, args: tuple[Any, ...]) -> Solution[Any]:
    with torch.no_grad():
        return solve(
            f,
            z0,
            args,
            forward.solver,
            tol=forward.tol,
            max_steps=forward.max_steps,
            select=forward.select,
            compact=forward.compact,
            trace=forward.trace,
        )


# A solve to a tolerance looks at residuals to see when to stop, which no graph can hold: tracing it
# would break a compiled graph in dozens of places instead of one. A bare budget stays traceable.
_search: Callable[..., Solution[Any]] = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Equilibrium:
    """What comes out of a DEQ layer.

    Attributes:
        z: the answer, f(z) of the selected iterate; the last of ``states``.
        states: every state that a loss may supervise, in order.
        solution: how the forward solve went. ``solution.residual`` is that of the iterate z,
            while the answer is its image f(z). None of its tensors carries a gradient.
    """

    z: State
    states: tuple[State, ...]
    solution: Solution[Any]


@runtime_checkable
class GradientEstimator(Protocol):
    """A way to differentiate an equilibrium. Options are the fields of a frozen dataclass."""

    @property
    def keeps_answer(self) -> bool:
        """Whether ``differentiate`` returns the solver's own answer, f(z) of the selected iterate.

        If so, a layer uses the estimator in evaluation too when gradients are enabled. If not, the
        answer in evaluation refuses to be differentiated.
        """
        ...

    def differentiate(
        self, f: Cell, z0: State, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """Reach the fixed point of ``z -> f(z, *args)`` from ``z0`` so that autograd can follow.

        Args:
            f: the cell. It may reach parameters by closure; they get gradients all the same.
            z0: first iterate, (B, ...) a leaf.
            args: further arguments of f; tensors among them get gradients.
            forward: the solver with its settings.
        """
        ...
