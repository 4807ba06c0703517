"""The exact gradient at a fixed point, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqgen.gradients.adjoint import attach
from deqgen.gradients.product import Cotangent, Product
from deqgen.gradients.protocol import Cell, Equilibrium, Forward, State
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import answer
from deqgen.gradients.warning import warn_unless_converged
from deqgen_solvers import NewtonKrylov, Solution, Tolerance, make_solver, solve
from deqgen_solvers.methods.options import check_count, check_flag
from deqgen_solvers.protocol import Solver


@register_gradient("implicit")
@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation (Bai et al. 2019, arXiv 1909.01377, theorem 1).

    The forward solve is not recorded; one evaluation of f at its answer is. The backward pass
    solves v = u + J^T v, one vector-Jacobian product a step, and pulls v back through f once.
    Memory does not grow with the number of steps of either solve. The gradient is as exact as
    both solves are: with contraction rate r, relative errors of about 1/(1 - r) times the
    tolerances. Where the forward solve is compact the adjoint solve is too: samples that are done
    leave it, and f is evaluated once more on those that stay.

    Forward mode solves the system of J in place of J^T. A derivative of a derivative needs
    ``order=2`` and reverse mode twice; beyond its order it raises :class:`GradientError`.

    Args:
        solver: name or object of the solver of the adjoint system. It is affine, which is what
            GMRES is for; GMRES needs no contraction.
        tol: when a sample's adjoint has converged. bfloat16, autocast included, seldom does better
            than ``rtol=1e-2``. The default is relative, since gradients have no scale of their
            own; None for a bare budget of ``max_steps`` products, which never warns.
        max_steps: most steps of the adjoint solve.
        order: derivatives that can be taken. Each beyond the first records one more evaluation of f
            and solves one more system in a backward pass.
        warm_start: begin the adjoint solve at the last one's answer if its shapes are the same, for
            training on the same samples again. While ``tol`` is met it changes the number of steps,
            not the gradient. It holds one cotangent; use one estimator a layer.
        callback: called with the :class:`~deqgen_solvers.Solution` of every adjoint solve.

    Raises:
        ValueError: an unknown solver, or ``max_steps`` or ``order`` below 1; at the first call,
            NewtonKrylov where the forward solve is compact.
        TypeError: an option of the wrong type.

    Warns:
        EquilibriumWarning: if the forward or the adjoint solve missed its tolerance in some sample.
    """

    references: ClassVar[tuple[str, ...]] = ("bai2019deep",)
    solver: str | Solver[Any] = "gmres"
    tol: Tolerance | None = field(default_factory=lambda: Tolerance(atol=0.0, rtol=1e-5))
    max_steps: int = 50
    order: int = 1
    warm_start: bool = False
    callback: Callable[[Solution[Cotangent]], object] | None = None
    _last: dict[str, Cotangent] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # All of it now, not in the first backward pass.
        make_solver(self.solver)
        check_count("Implicit", "max_steps", self.max_steps)
        check_count("Implicit", "order", self.order)
        check_flag("Implicit", "warm_start", self.warm_start)
        if self.tol is not None and not isinstance(self.tol, Tolerance):
            raise TypeError(f"Implicit: tol must be a Tolerance or None, got {self.tol!r}.")
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"Implicit: callback must be callable, got {self.callback!r}.")

    @property
    def keeps_answer(self) -> bool:
        """True: the answer is that of the solver."""
        return True

    def differentiate(
        self, f: Cell, z0: State, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        if forward.compact and isinstance(make_solver(self.solver), NewtonKrylov):
            raise ValueError(
                "Implicit: NewtonKrylov differentiates the adjoint system forward, which a compact "
                "solve evaluates anew. Use GMRES, which is what it would call, or compact=False."
            )
        solution = forward(f, z0, args)
        if not torch.is_grad_enabled():
            z = answer(solution)
        else:
            warn_unless_converged(
                "forward", solution, forward.tol, "the gradient is that of another point"
            )
            respond = partial(self._solve_adjoint, compact=forward.compact)
            z = attach(f, solution.z, args, respond, order=self.order, forward_mode=True)
        return Equilibrium(z, (z,), solution)

    def _solve_adjoint(self, product: Product, u: Cotangent, compact: bool) -> Cotangent:
        system = _Affine(product)
        rows = torch.arange(u[0].shape[0], device=u[0].device)
        solution = solve(
            system,
            self._start(u),
            (rows, u),
            self.solver,
            tol=self.tol,
            max_steps=self.max_steps,
            compact=compact,
        )
        if self.callback is not None:
            self.callback(solution)
        warn_unless_converged("backward", solution, self.tol, "the gradient is only approximate")
        v: Cotangent = answer(solution)
        if self.warm_start:
            self._last["v"] = v
        return v

    def _start(self, u: Cotangent) -> Cotangent:
        last = self._last.get("v", ())
        same = len(last) == len(u) and all(
            (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
            for a, b in zip(last, u, strict=True)
        )
        return tuple(map(_where_finite, last, u)) if same else u


class _Affine:
    """v -> u + J^T v on the samples ``rows`` (R,) that the solve still holds.

    The graph at hand is that of the whole batch, so f is evaluated anew when samples have left.
    """

    def __init__(self, product: Product) -> None:
        self.whole = self.product = product
        self.rows: Tensor | None = None

    def __call__(self, v: Cotangent, rows: Tensor, u: Cotangent) -> Cotangent:
        if self.rows is not None and len(rows) != len(self.rows):
            self.product = self.whole.take(rows)
        self.rows = rows
        return tuple(a + b for a, b in zip(u, self.product(v), strict=True))


def _where_finite(last: Tensor, u: Tensor) -> Tensor:
    """Rows of ``last`` (B, ...), those of ``u`` where a loss was not finite the last time."""
    finite = last.flatten(1).isfinite().all(1) if last.ndim > 1 else last.isfinite()
    return torch.where(finite.view(-1, *[1] * (last.ndim - 1)), last, u)
