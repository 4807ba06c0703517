"""The deep equilibrium layer: a cell, a solver and a gradient estimator, each exchangeable.

Letters: B samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from deqgen.gradients import (
    Equilibrium,
    Forward,
    GradientError,
    GradientEstimator,
    State,
    make_gradient,
)
from deqgen.gradients.adjoint import has_tangent
from deqgen.gradients.functional import differentiating
from deqgen.gradients.refusal import refuse
from deqgen.gradients.states import answer, leaves, map_leaves, rebuild
from deqgen.layers.initial import Generators, normal_start
from deqgen.layers.normalization import settle
from deqgen_solvers import Tolerance, make_solver
from deqgen_solvers.errors import StateError
from deqgen_solvers.protocol import Solver
from deqgen_solvers.state import map_tensors

Initial: TypeAlias = Literal["zeros", "normal"] | Callable[..., State]

_NO_GRADIENT = (
    "this equilibrium was computed in evaluation mode with an estimator ({gradient!r}) that "
    "differentiates other iterations than the solver's, so it has no gradient. Call .train() "
    "first, choose Implicit(), JFB() or Phantom(mode='neumann'), or evaluate under torch.no_grad()."
)


class DEQ(nn.Module):
    """A layer whose output is the fixed point ``z = cell(z, *args)``.

    Args:
        cell: a module, or any function of ``(z, *args)`` that returns a state like ``z``. If it is
            a module its parameters are the layer's; parameters that a function reaches by closure
            get gradients too, but belong to whoever owns them.
        solver: name or object (:func:`deqgen_solvers.make_solver`).
        gradient: name or object (:func:`deqgen.gradients.make_gradient`).
        tol: when a sample has converged; None for a bare budget. ``Tolerance(atol=0, rtol=0)``
            spends the whole budget and still returns the best iterate.
        max_steps: most solver steps while training. The solver spends at most one evaluation of
            the cell more than steps; ``Unrolled()`` evaluates it exactly ``max_steps`` times.
        eval_max_steps: most solver steps in evaluation; default: ``max_steps``.
        compact: let samples that have converged leave the solve, and that of `Implicit`'s backward
            pass. The cell must be row-wise, and every tensor among the arguments hold one row a
            sample.
        initial: first iterate when a call brings none: ``"zeros"`` or ``"normal"``, in the shape
            of the first argument, or a function of the arguments.

    Attributes ``solver``, ``gradient``, ``tol``, ``max_steps``, ``eval_max_steps``, ``compact``
    may be changed at any time.

    Raises:
        ValueError: an unknown name or an option out of its range.
        TypeError: something that is no cell, solver or estimator.

    Example:
        >>> layer = DEQ(lambda z, x: 0.5 * torch.tanh(z) + x)
        >>> equilibrium = layer(torch.ones(2, 3))
        >>> equilibrium.z.shape
        torch.Size([2, 3])
    """

    cell: Callable[..., State]

    def __init__(
        self,
        cell: Callable[..., State],
        *,
        solver: str | Solver[Any] = "anderson",
        gradient: str | GradientEstimator = "implicit",
        tol: Tolerance | None = Tolerance(),  # noqa: B008 - frozen
        max_steps: int = 50,
        eval_max_steps: int | None = None,
        compact: bool = False,
        initial: Initial = "zeros",
    ) -> None:
        super().__init__()
        if not callable(cell):
            raise TypeError(f"cell must be a module or a function of (z, *args), got {cell!r}.")
        if not (callable(initial) or initial in ("zeros", "normal")):
            raise ValueError(
                f"initial={initial!r} is unknown; it may be 'zeros', 'normal', or a function of "
                "the layer's arguments."
            )
        self.cell = cell
        self.solver = make_solver(solver)
        self.gradient = make_gradient(gradient)
        self.tol = tol
        self.max_steps = _steps("max_steps", max_steps)
        self.eval_max_steps = (
            None if eval_max_steps is None else _steps("eval_max_steps", eval_max_steps)
        )
        self.compact = compact
        self.initial = initial

    def forward(
        self,
        *args: Any,
        z0: State | None = None,
        max_steps: int | None = None,
        tol: Tolerance | Literal["layer"] | None = "layer",
        solver: str | Solver[Any] | None = None,
        compact: bool | None = None,
        trace: bool = False,
        generator: Generators = None,
    ) -> Equilibrium:
        """Solve ``z = cell(z, *args)``. Options given here replace the layer's for this call.

        Args:
            args: handed to the cell; tensors among them get gradients.
            z0: first iterate, ``(B, ...)`` each tensor; default: as ``initial`` says.
            max_steps: most steps, 0 or more.
            tol: when a sample has converged; None for a bare budget.
            solver: name or object.
            compact: whether samples that have converged leave.
            trace: keep the residual of every step in ``solution.trace``, where a solver runs to a
                tolerance.
            generator: for ``initial="normal"``: one a sample, one for all, or None for the draw
                of seed 0, the same for every sample.

        Returns:
            The equilibrium. In training its states are what the estimator supervises. In evaluation
            there is one state, f(z) of the best iterate z.

        Raises:
            StateError: (a ValueError) if the cell returns another structure or shape than it got.
            ValueError: if no first iterate is given and none can be derived from the arguments; or,
                in training, if a spectral norm of the cell is not held by :func:`fixed_weights`.
        """
        start = self._start(args, generator) if z0 is None else z0
        budget = self.max_steps
        if not self.training and self.eval_max_steps is not None:
            budget = self.eval_max_steps
        budget = budget if max_steps is None else _steps("max_steps", max_steps)
        solve = Forward(
            self.solver if solver is None else make_solver(solver),
            self.tol if tol == "layer" else tol,
            budget,
            compact=self.compact if compact is None else compact,
            trace=trace,
        )
        estimate = torch.is_grad_enabled() and self.gradient.keeps_answer
        if self.training or estimate:
            settle(self.cell)
            return self.gradient.differentiate(self._f, start, args, solve)
        solution = solve(self._f, start, args)
        z = self._without_gradient(answer(solution), start, args)
        return Equilibrium(z, (z,), solution)

    def extra_repr(self) -> str:
        """What the layer was built from, besides its cell."""
        return (
            f"solver={self.solver}, gradient={self.gradient}, tol={self.tol}, "
            f"max_steps={self.max_steps}, eval_max_steps={self.eval_max_steps}"
        )

    def _f(self, z: State, *args: Any) -> State:
        """The cell, held to the shapes of its state; under autocast its output is cast back."""
        return map_leaves(_like, self.cell(z, *args), like=z)

    def _start(self, args: tuple[Any, ...], generator: Generators) -> State:
        if callable(self.initial):
            return self.initial(*args)
        first = args[0] if args else None
        if not isinstance(first, Tensor) or not first.is_floating_point() or first.ndim == 0:
            raise ValueError(
                f"initial={self.initial!r} gives the state the shape of the first argument, which "
                f"must then be a floating-point tensor (B, ...); got {type(first).__name__}. "
                "Pass z0=..., or build the layer with initial=<function of the arguments>."
            )
        if self.initial == "zeros":
            return torch.zeros_like(first, requires_grad=False)
        shape = first.shape[1:]
        return normal_start(
            first.shape[0], shape, generator, device=first.device, dtype=first.dtype
        )

    def _without_gradient(self, z: State, z0: State, args: tuple[Any, ...]) -> State:
        """``z``, guarded against being differentiated: a missing gradient would go unnoticed."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return z
        message = _NO_GRADIENT.format(gradient=self.gradient)
        anchors: list[Tensor] = []
        map_tensors(lambda t: anchors.append(t) or t, (z0, args))  # type: ignore[func-returns-value]
        owner = getattr(self.cell, "__self__", self.cell)
        if isinstance(owner, nn.Module):
            anchors += owner.parameters()
        else:  # what a function reaches by closure shows in an image of it
            anchors += leaves(self._f(map_leaves(Tensor.detach, z), *args), like=z)
        if differentiating() or has_tangent(anchors):
            raise GradientError(message)
        return rebuild(z, list(refuse(message, tuple(leaves(z)), tuple(anchors))))


def _like(image: Tensor, z: Tensor) -> Tensor:
    if image.shape != z.shape:
        raise StateError(
            f"the cell returned shape {tuple(image.shape)} for a state of shape "
            f"{tuple(z.shape)}; it must map a state to a state of the same shape."
        )
    return image.to(z.dtype)


def _steps(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, got {value}.")
    return value
