"""Jacobian-free backpropagation with random numbers of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from deqgen.gradients.adjoint import forget_casts
from deqgen.gradients.protocol import Cell, Equilibrium, Forward, GradientError
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import budget_report, detach
from deqgen_solvers.methods.options import check_count


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@register_gradient("stochastic-jfb")
@dataclass(frozen=True)
class StochasticJFB:
    """Iterate a random number of times without gradients, then a random number with them.

    The training of fixed-point diffusion models (X. Bai and L. Melas-Kyriazi 2024, arXiv
    2401.08741). The model learns to do well after any of these numbers of iterations,
    so that they can be chosen at test time; the gradient is that of the recorded ones alone.

    The iterations are plain ones whatever the layer's solver, which serves in evaluation only.

    Args:
        no_grad: least and most iterations that are not recorded, 0 or more.
        grad: least and most recorded ones, at least 1; memory grows with them.
        generator: where the numbers are drawn from, on the CPU; default: a generator of seed 0 of
            this estimator's own. So processes of one run draw the same numbers, as long as they
            call it equally often. To resume a run exactly, save its state with the run's.

    Raises:
        ValueError, TypeError: a bound that is no whole number or below its least value, or an empty
            range.
        GradientError: when ``torch.utils.checkpoint`` around it evaluates it anew, since it would
            draw other numbers.
    """

    references: ClassVar[tuple[str, ...]] = ("bai2024fixed",)
    no_grad: tuple[int, int] = (1, 12)
    grad: tuple[int, int] = (1, 12)
    generator: torch.Generator = field(default_factory=_generator, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("no_grad", 0), ("grad", 1)):
            value = getattr(self, name)
            for bound in value:
                check_count("StochasticJFB", f"a bound of {name}", bound, least)
            if len(value) != 2 or value[0] > value[1]:
                raise ValueError(
                    f"StochasticJFB: {name} must be (least, most) with {least} <= least <= most, "
                    f"got {value!r}."
                )

    @property
    def keeps_answer(self) -> bool:
        """False: it iterates by itself."""
        return False

    def differentiate(
        self, f: Cell, z0: Any, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        free, recorded = self._draw(self.no_grad), self._draw(self.grad)
        z = z0
        with torch.no_grad():
            for _ in range(free):
                z = f(z, *args)
        forget_casts()
        z = detach(z)
        for _ in range(recorded):
            z = f(z, *args)
        steps = free + recorded
        return Equilibrium(z, (z,), budget_report(z, steps, steps))

    def _draw(self, bounds: tuple[int, int]) -> int:
        low, high = bounds
        if low < high and torch._C._current_graph_task_id() != -1:  # within a backward pass
            raise GradientError(
                "StochasticJFB was evaluated anew in a backward pass, where it would draw other "
                "numbers of steps and the gradient would be wrong. Do not put "
                "torch.utils.checkpoint around it, or fix the numbers: no_grad=(n, n), grad=(k, k)."
            )
        return int(torch.randint(low, high + 1, (), generator=self.generator))
