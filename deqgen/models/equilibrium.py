"""What models with an equilibrium have in common: a DEQ layer and its budget, and noise levels.

Letters: B samples.
"""

from __future__ import annotations

from torch import Tensor

from deqgen.gradients import Unrolled
from deqgen.layers import DEQ, ShapeError
from deqgen.models.protocol import GenerativeModel


class EquilibriumModel(GenerativeModel):
    """Base class of models that solve z = cell(z, ...) and decode z.

    A subclass has a :class:`DEQ` layer ``deq``, and a config with ``max_steps`` and
    ``noise_level``.
    """

    deq: DEQ

    def solver_steps(self, max_steps: int | None) -> int:
        """Steps of the DEQ layer that make ``max_steps`` evaluations, by default the config's.

        Raises:
            ValueError: if ``max_steps`` is below 1.
        """
        evaluations: int = self.config.max_steps if max_steps is None else max_steps  # type: ignore[attr-defined]
        if evaluations < 1:
            raise ValueError(f"max_steps must be at least 1, got {evaluations}.")
        # A solver evaluates f at z0 before its first step, so n evaluations leave n - 1 steps.
        unrolled = self.training and isinstance(self.deq.gradient, Unrolled)
        return evaluations if unrolled else evaluations - 1


def check_state(name: str, tensor: object, wanted: tuple[int, ...]) -> None:
    """Raise a TypeError or ShapeError unless ``tensor`` is floating point, of shape ``wanted``."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor {wanted}, got {got}.")
    if tuple(tensor.shape) != wanted:
        raise ShapeError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}.")
