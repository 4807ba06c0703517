"""What models with an equilibrium have in common: a DEQ layer and its budget, and noise levels.

Letters: B samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deqgen.gradients import Equilibrium, GradientEstimator, State, Unrolled, make_gradient
from deqgen.layers import DEQ, ShapeError
from deqgen.models.protocol import GenerativeModel, ModelConfig, Stopping
from deqgen_solvers import Solver, Tolerance, make_solver


@dataclass(frozen=True, kw_only=True)
class EquilibriumConfig(ModelConfig):
    """What the configs of all models with an equilibrium hold.

    Args:
        max_steps: evaluations of the cell, at most, in training and in evaluation; those that a
            solver such as Newton-Krylov makes within a step come on top.
        solver: name or object, such as "anderson" or ``Anderson(memory=8)``.
        gradient: name or object of the gradient estimator that training uses, such as "implicit" or
            ``Unrolled(every=2)``. Those that solve to a tolerance want ``rtol`` above 0.
        rtol: relative residual at which a sample's solve ends; 0 spends the whole budget.
        noise_level: take ``sigma`` and denoise. Then there is a class "no class" too.
    """

    max_steps: int = 6
    solver: str | Solver[Any] = "picard"
    gradient: str | GradientEstimator = "unrolled"
    rtol: float = 0.0
    noise_level: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        make_solver(self.solver)
        make_gradient(self.gradient)


class EquilibriumModel(GenerativeModel):
    """Base class of models that solve z = cell(z, ...) and decode z.

    A subclass has a :class:`DEQ` layer ``deq``, made by :meth:`layer`. ``deq.solver`` and
    ``deq.gradient`` may be set at any time and are saved with the model as they then are.
    """

    config: EquilibriumConfig
    deq: DEQ

    def layer(self, cell: Any) -> DEQ:
        """The DEQ layer that the config asks for, around ``cell``."""
        c = self.config
        tol = Tolerance(atol=0.0, rtol=c.rtol)
        return DEQ(cell, solver=c.solver, gradient=c.gradient, tol=tol, max_steps=c.max_steps)

    def saved_config(self) -> EquilibriumConfig:
        """The config with the solver and the gradient estimator that the layer has now."""
        now: dict[str, Any] = {}
        if make_solver(self.config.solver) != make_solver(self.deq.solver):
            now["solver"] = self.deq.solver
        if make_gradient(self.config.gradient) != make_gradient(self.deq.gradient):
            now["gradient"] = self.deq.gradient
        return replace(self.config, **now)

    def solve(
        self,
        args: tuple[Tensor, ...],
        z0: State,
        *,
        max_steps: int | None,
        tol: Stopping,
        solver: str | Solver[Any] | None,
        trace: bool,
    ) -> Equilibrium:
        """Solve ``z = cell(z, *args)`` from z0; the options are those of ``forward``.

        Raises:
            ValueError: if ``max_steps`` is below 1.
        """
        evaluations = self.config.max_steps if max_steps is None else max_steps
        if evaluations < 1:
            raise ValueError(f"max_steps must be at least 1, got {evaluations}.")
        stopping = self.deq.tol if tol == "model" else tol
        # A solve to a tolerance evaluates f at z0 before its first step, so n evaluations leave
        # n - 1 steps.
        unrolled = self.training and isinstance(self.deq.gradient, Unrolled)
        steps = evaluations if unrolled or stopping is None else evaluations - 1
        equilibrium: Equilibrium = self.deq(
            *args,
            z0=z0,
            max_steps=steps,
            tol=stopping,
            solver=solver,
            compact=not (self.training or torch.is_grad_enabled()),
            trace=trace,
        )
        return equilibrium


def check_state(name: str, tensor: object, wanted: tuple[int, ...]) -> None:
    """Raise a TypeError or ShapeError unless ``tensor`` is floating point, of shape ``wanted``."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor {wanted}, got {got}.")
    if tuple(tensor.shape) != wanted:
        raise ShapeError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}.")
