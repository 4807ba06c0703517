"""Cheap approximate gradients: a few damped steps in place of the adjoint solve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqgen.gradients.adjoint import attach, forget_casts
from deqgen.gradients.product import Cotangent, Product
from deqgen.gradients.protocol import Cell, Equilibrium, Forward, State
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import answer, detach, map_leaves
from deqgen.gradients.warning import warn_unless_converged
from deqgen_solvers.errors import nearest
from deqgen_solvers.methods.options import check_count

_MODES = ("unroll", "neumann")
_EFFECT = "the gradient is that of another point"


@register_gradient("phantom")
@dataclass(frozen=True)
class Phantom:
    """Phantom gradient (Geng et al. 2021, arXiv 2111.05177).

    With J the Jacobian of f at the point, k steps and damping t, the inverse of I - J is replaced
    by t * sum_{i<k} (t J + (1 - t) I)^i (equations 4 to 8).

    - ``mode="unroll"`` (UPG): k recorded steps z <- (1 - t) z + t f(z) from the solver's answer.
      The answer moves along; memory grows with k; derivatives of any order exist (of those k
      steps).
    - ``mode="neumann"`` (NPG): one recorded evaluation; the sum is taken in the backward pass
      with k - 1 vector-Jacobian products. Memory does not grow with k; double backward raises
      :class:`GradientError`.

    The two agree where f is affine. ``steps=1, damping=1`` is :class:`JFB`.

    Args:
        steps: k, at least 1.
        damping: t, in (0, 1].
        mode: ``"unroll"`` or ``"neumann"``.
        every: with ``"unroll"``, supervise each ``every``-th recorded step, the last one among
            them; None: the last alone.

    Raises:
        ValueError: if an option is out of its range.
    """

    references: ClassVar[tuple[str, ...]] = ("geng2021training",)
    steps: int = 5
    damping: float = 0.5
    mode: str = "unroll"
    every: int | None = None

    def __post_init__(self) -> None:
        check_count("Phantom", "steps", self.steps)
        if not 0 < self.damping <= 1:
            raise ValueError(f"Phantom: damping must lie in (0, 1], got {self.damping}.")
        if self.mode not in _MODES:
            hint = nearest(str(self.mode), _MODES)
            raise ValueError(f"Phantom: unknown mode {self.mode!r}.{hint} Allowed: {_MODES}.")
        if self.every is None:
            return
        if self.mode == "neumann":
            raise ValueError("Phantom: mode='neumann' has one state; every belongs to 'unroll'.")
        check_count("Phantom", "every", self.every)
        if self.steps % self.every:
            raise ValueError(f"Phantom: every={self.every} does not divide steps={self.steps}.")

    @property
    def keeps_answer(self) -> bool:
        """Unless recorded steps lead on from the solver's answer, or damping holds them back."""
        return self.mode == "neumann" or (self.steps == 1 and self.damping == 1)

    def differentiate(
        self, f: Cell, z0: State, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        solution = forward(f, z0, args)
        # Recorded steps lead on from the answer, and their gradient is right wherever it is.
        if torch.is_grad_enabled() and self.keeps_answer:
            warn_unless_converged("forward", solution, forward.tol, _EFFECT)
        if self.mode == "unroll":
            states = self._unroll(f, solution.z, args)
        elif torch.is_grad_enabled():
            states = [attach(f, solution.z, args, self._neumann, forward_mode=True)]
        else:
            states = [answer(solution)]
        return Equilibrium(states[-1], tuple(states), solution)

    def _unroll(self, f: Cell, z: State, args: tuple[Any, ...]) -> list[State]:
        forget_casts()
        z, states = detach(z), []
        for step in range(1, self.steps + 1):
            image = f(z, *args)
            z = image if self.damping == 1 else map_leaves(self._damp, image, like=z)
            if step % (self.every or self.steps) == 0:
                states.append(z)
        return states

    def _damp(self, image: Tensor, z: Tensor) -> Tensor:
        return z + self.damping * (image - z)

    def _neumann(self, product: Product, u: Cotangent) -> Cotangent:
        t = self.damping
        v = tuple(t * part for part in u)
        for _ in range(self.steps - 1):  # v <- (1 - t) v + t (u + J^T v)
            v = tuple(a + t * (b + c - a) for a, b, c in zip(v, u, product(v), strict=True))
        return v


@register_gradient("jfb")
@dataclass(frozen=True)
class JFB(Phantom):
    """Jacobian-free backpropagation (Fung et al. 2022, arXiv 2103.12803): ``Phantom(1, 1.0)``.

    (I - J)^-1 is replaced by I. For a contraction the result is a descent direction under the
    conditions of their theorem 1. It takes no options.
    """

    references: ClassVar[tuple[str, ...]] = ("fung2022jfb",)
    steps: int = field(default=1, init=False)
    damping: float = field(default=1.0, init=False)
    mode: str = field(default="unroll", init=False)
    every: int | None = field(default=None, init=False)
