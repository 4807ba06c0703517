"""Back-propagation through plain iterations, the published way to train a GET."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from deqgen.gradients.protocol import Cell, Equilibrium, Forward, State
from deqgen.gradients.recompute import checkpointed, checkpointed_and_checked
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import budget_report
from deqgen_solvers.methods.options import check_count, check_flag


@register_gradient("unrolled")
@dataclass(frozen=True)
class Unrolled:
    """Ordinary autograd through ``z <- f(z)``, repeated ``steps`` times from z0.

    With ``every=1`` all iterates are returned for supervision: ``Unrolled(6)`` is how the GET was
    trained (Geng et al. 2023, arXiv 2401.08639, section 3). Memory grows with the steps. The
    gradient is exact for the iterates themselves, whether they have converged or not, to any
    order.

    The iterations are plain ones whatever the layer's solver, which serves in evaluation only.

    Args:
        steps: evaluations of f; None takes the layer's ``max_steps``, so that a call may choose.
        every: supervise each ``every``-th iterate, counted so that the last one is among them.
        checkpoint: keep one state a step and evaluate f anew in the backward pass, as
            :func:`torch.utils.checkpoint.checkpoint` does: autocast and the random numbers are
            those of the first time. Almost four evaluations' work in place of three (a backward
            pass counts for two), and the activations of one: those of the last evaluation, which
            the backward pass asks for first, are kept.

    Raises:
        ValueError: if an option is below 1, or ``every`` does not divide the number of steps (at
            construction if that is known, else at the first call).
    """

    references: ClassVar[tuple[str, ...]] = ("geng2023onestep",)
    steps: int | None = None
    every: int = 1
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_count("Unrolled", "every", self.every)
        check_flag("Unrolled", "checkpoint", self.checkpoint)
        if self.steps is not None:
            self._check(self.steps)

    @property
    def keeps_answer(self) -> bool:
        """False: it iterates by itself."""
        return False

    def differentiate(
        self, f: Cell, z0: State, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        steps = forward.max_steps if self.steps is None else self.steps
        self._check(steps)
        z = z0
        states = []
        for step in range(1, steps + 1):
            z = self._evaluate(f, z, args, left=steps - step)
            if step % self.every == 0:
                states.append(z)
        return Equilibrium(z, tuple(states), budget_report(z, steps, steps))

    def _evaluate(self, f: Cell, z: State, args: tuple[Any, ...], left: int) -> State:
        if not self.checkpoint or left == 0:
            return f(z, *args)
        # The first to be evaluated anew is the last but one: it finds out a cell that has changed.
        return (checkpointed_and_checked if left == 1 else checkpointed)(f, z, *args)

    def _check(self, steps: int) -> None:
        check_count("Unrolled", "steps", steps)
        if steps % self.every:
            raise ValueError(f"Unrolled: every={self.every} does not divide steps={steps}.")
