"""The exact gradient at a fixed point, by the implicit function theorem."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from deqgen.gradients.adjoint import Cotangent, attach
from deqgen.gradients.protocol import Cell, Equilibrium, EquilibriumWarning, Forward, State
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import answer
from deqgen_solvers import Solution, Tolerance, make_solver, solve
from deqgen_solvers.protocol import Solver


@register_gradient("implicit")
@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation (Bai et al. 2019, arXiv 1909.01377, theorem 1).

    The forward solve is not recorded; one evaluation of f at its answer is. The backward pass
    solves v = u + J^T v, one vector-Jacobian product a step, and pulls v back through f once.
    Memory does not grow with the number of steps of either solve. The gradient is as exact as
    both solves are: with contraction rate r, relative errors of about 1/(1 - r) times the
    tolerances.

    Reverse mode, once: double backward and forward mode raise :class:`GradientError`.

    Args:
        solver: name or object of the solver of the adjoint system.
        tol: when a sample's adjoint has converged. bfloat16, autocast included, seldom does better
            than ``rtol=1e-2``. The default is relative, since gradients have no scale of their
            own; None for a bare budget of ``max_steps`` products, which never warns.
        max_steps: most steps of the adjoint solve.

    Raises:
        ValueError: an unknown solver, or ``max_steps`` below 1.

    Warns:
        EquilibriumWarning: if the forward or the adjoint solve missed its tolerance in some sample.
    """

    solver: str | Solver[Any] = "anderson"
    tol: Tolerance | None = field(default_factory=lambda: Tolerance(atol=0.0, rtol=1e-5))
    max_steps: int = 50

    def __post_init__(self) -> None:
        if isinstance(self.solver, str):
            make_solver(self.solver)  # raises now, not in the first backward pass
        if self.max_steps < 1:
            raise ValueError(f"Implicit: max_steps must be at least 1, got {self.max_steps}.")

    @property
    def keeps_answer(self) -> bool:
        """True: the answer is that of the solver."""
        return True

    def differentiate(
        self, f: Cell, z0: State, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        solution = forward(f, z0, args)
        if not torch.is_grad_enabled():
            z = answer(solution)
        else:
            if forward.tol is not None:
                _warn_unless_converged("forward", solution, "the gradient is that of another point")
            z = attach(f, solution.z, args, self._solve_adjoint)
        return Equilibrium(z, (z,), solution)

    def _solve_adjoint(self, vjp: Callable[[Cotangent], Cotangent], u: Cotangent) -> Cotangent:
        def step(v: Cotangent) -> Cotangent:
            return tuple(a + b for a, b in zip(u, vjp(v), strict=True))

        solution = solve(step, u, (), self.solver, tol=self.tol, max_steps=self.max_steps)
        if self.tol is not None:
            _warn_unless_converged("backward", solution, "the gradient is only approximate")
        v: Cotangent = answer(solution)
        return v


def _warn_unless_converged(which: str, solution: Solution[Any], effect: str) -> None:
    if bool(solution.converged.all()):
        return
    said = solution.explain().replace("\n", " ")
    warnings.warn(
        f"the {which} solve missed its tolerance, so {effect}. {said} Likely causes: (a) the cell "
        "is no contraction, (b) too few steps, (c) a tolerance below what the dtype can reach, "
        "autocast included. Try more max_steps, a looser tol, or gradient=Phantom(...).",
        EquilibriumWarning,
        stacklevel=3,
    )
