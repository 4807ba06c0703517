"""Two coupled sequences whose steps can be taken back: exact gradients at constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop

from deqgen.gradients.protocol import (
    Cell,
    Equilibrium,
    Forward,
    GradientError,
    State,
)
from deqgen.gradients.recompute import checkpointed
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import budget_report, leaves, rebuild
from deqgen.gradients.warning import warn_caller
from deqgen_solvers.autocast import Autocast
from deqgen_solvers.methods.options import check_count

Leaves: TypeAlias = list[Tensor]

# How far from z0 the way back may end, relative to the way: more is a warning, an error.
_LOST, _WRONG = 1e-6, 1e-2

_MISSED = (
    "the steps of Reversible, taken back, ended at a relative distance of {missed} from z0, so "
    "the gradient is off. Likely causes: (a) rounding errors, since each step back divides by "
    "1 - beta = {left:.2g}: take fewer steps or a smaller beta, (b) a cell that is not what it was "
    "then, as after torch.func.functional_call or an optimizer's step. Or use Unrolled(steps)."
)


@register_gradient("reversible")
@dataclass(frozen=True)
class Reversible:
    """Back-propagation through a scheme that is algebraically reversible.

    Two sequences start at z0 and tend to the same fixed point::

        y_n+1 = (1 - beta) y_n + beta f(z_n)
        z_n+1 = (1 - beta) z_n + beta f(y_n+1)

    (S. McCallum et al. 2025, arXiv 2509.12917). The backward pass takes the steps back, last one
    first, instead of remembering them, so the gradient is the exact one of the scheme and the
    memory that of one evaluation, whatever the number of steps. A step costs two evaluations of f,
    and each is done once more in the backward pass.

    Taking a step back divides by 1 - beta, which magnifies rounding errors as often. The sequences
    are therefore kept in float64 (float32 where a device has no double), while f sees the state's
    own dtype, and a backward pass whose way back misses z0 warns.

    Random numbers that f draws are restored.

    Args:
        steps: steps n, two evaluations each; None takes half the layer's ``max_steps``.
        beta: relaxation in (0, 1).

    Raises:
        ValueError: if an option is out of its range.

    Warns:
        EquilibriumWarning: in a backward pass whose way back misses z0 by more than 1e-6.
            By more than 1e-2 it raises :class:`GradientError`.
    """

    references: ClassVar[tuple[str, ...]] = ("mccallum2025reversible",)
    steps: int | None = None
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_count("Reversible", "steps", self.steps)
        if not 0 < self.beta < 1:
            raise ValueError(
                f"Reversible: beta must lie in (0, 1), got {self.beta}; a step with beta=1 "
                "forgets where it came from."
            )

    @property
    def keeps_answer(self) -> bool:
        """False: it iterates by itself."""
        return False

    def differentiate(
        self, f: Cell, z0: State, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        steps = forward.max_steps // 2 if self.steps is None else self.steps
        if steps < 1:
            raise ValueError(
                f"Reversible: a step takes two evaluations; max_steps={forward.max_steps} leaves "
                "none."
            )
        scheme = _Scheme(lambda z: f(z, *args), z0, self.beta)
        z = scheme.run(2 * steps)
        return Equilibrium(z, (z,), budget_report(z, steps, 2 * steps))


class _Scheme:
    """The two sequences. Evaluation k advances y if k is even and z if odd, from the other one."""

    def __init__(self, f: Callable[[State], State], z0: State, beta: float) -> None:
        self.f, self.z0, self.beta = f, z0, beta
        self.autocast = Autocast(leaves(z0)[0].device)
        # Numbers of y and z: at the end, and after `done` evaluations.
        self.end: tuple[Leaves, Leaves] = ([], [])
        self.pair: list[Leaves] = [[], []]
        self.done = self.evaluations = 0

    def run(self, evaluations: int) -> State:
        """Advance so often; return z in the dtypes of z0, in the graph."""
        start = [leaf.to(_wide(leaf)) for leaf in leaves(self.z0)]
        pair = [start, start]
        # Stopping early would skip the image, which the step back needs.
        with set_checkpoint_early_stop(False):
            for k in range(evaluations):
                image = self._evaluate(k, pair[1 - k % 2])
                pair[k % 2] = [
                    (1 - self.beta) * own + self.beta * new.to(own.dtype)
                    for own, new in zip(pair[k % 2], image, strict=True)
                ]
        self.end = ([t.detach() for t in pair[0]], [t.detach() for t in pair[1]])
        self.evaluations = evaluations
        return self._state(pair[1])

    def _evaluate(self, k: int, point: Leaves) -> Leaves:
        """Evaluate f in the graph without keeping anything for the way back."""
        first = [point]
        tracked = [leaf.requires_grad for leaf in point]

        def evaluate(_: Tensor) -> Leaves:
            if first:
                return leaves(self.f(self._state(first[0])), like=self.z0)
            again = [
                leaf.detach().requires_grad_(flag)
                for leaf, flag in zip(self._input(k), tracked, strict=True)
            ]
            image = leaves(self.f(self._state(again)), like=self.z0)
            self._take_back(k, image)
            return image

        # The empty tensor tells checkpoint on which device to restore random numbers and autocast.
        image: Leaves = checkpointed(evaluate, point[0].new_empty(0))
        first.clear()
        return image

    def _input(self, k: int) -> Leaves:
        """What f was evaluated at, the evaluations after it taken back."""
        if k >= self.done:  # a backward pass begins
            self.pair, self.done = list(self.end), self.evaluations
        while self.done > k + 1:  # f was evaluated, but nothing of it was asked for
            last = self.done - 1
            with torch.no_grad(), self.autocast.on():
                image = leaves(self.f(self._state(self.pair[1 - last % 2])), like=self.z0)
            self._take_back(last, image)
        return self.pair[1 - k % 2]

    def _take_back(self, k: int, image: Leaves) -> None:
        self.pair[k % 2] = [
            (own - self.beta * new.detach().to(own.dtype)) / (1 - self.beta)
            for own, new in zip(self.pair[k % 2], image, strict=True)
        ]
        self.done = k
        if k == 0:
            self._check_return()

    def _check_return(self) -> None:
        """The way back must end at z0; where it does not, rounding errors were magnified."""
        for leaf, first, end in zip(self.pair[1], leaves(self.z0), self.end[1], strict=True):
            missed = torch.linalg.vector_norm(leaf - first.detach())
            size = torch.linalg.vector_norm(end) + torch.linalg.vector_norm(first.detach())
            if bool(missed <= _LOST * size):
                continue
            left = 1 - self.beta
            if not bool(missed <= _WRONG * size):
                raise GradientError(_MISSED.format(missed=f"{float(missed / size):.1e}", left=left))
            # Without the number, which would make each warning a new one.
            warn_caller(_MISSED.format(missed=f"more than {_LOST}", left=left))

    def _state(self, wide: Leaves) -> State:
        pairs = zip(wide, leaves(self.z0), strict=True)
        return rebuild(self.z0, [leaf.to(like.dtype) for leaf, like in pairs])


def _wide(leaf: Tensor) -> torch.dtype:
    """Double precision, or single where a device has no double."""
    widest = torch.float32 if leaf.device.type == "mps" else torch.float64
    return torch.promote_types(leaf.dtype, widest)
