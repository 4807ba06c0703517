"""One stopping rule for every method, per sample and aware of scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deqgen_solvers.errors import OptionError, OptionTypeError


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """A sample has converged when ``||f(z) - z|| <= atol * sqrt(N) + rtol * ||f(z)||``.

    The norms are Euclidean over the N unknowns of the sample, so ``atol`` is a root mean square in
    the units of z and ``rtol`` a fraction. The default suits float32; ``Tolerance(atol=0.0,
    rtol=1e-10)`` suits float64. A bfloat16 state rarely does better than ``rtol=1e-2``, a float16
    state than ``rtol=1e-3``.

    Args:
        atol: absolute part, in the units of z, >= 0.
        rtol: relative part, >= 0.

    Raises:
        OptionError: a part is negative or not finite.
        OptionTypeError: a part is not a real number.

    Example:
        >>> Tolerance(rtol=1e-3).threshold(torch.tensor([10.0]), unknowns=4)
        tensor([0.0100])
    """

    atol: float = 1e-6
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise OptionTypeError(f"Tolerance: {name} must be a real number, got {value!r}.")
            if not (math.isfinite(value) and value >= 0):
                raise OptionError(f"Tolerance: {name} must be finite and >= 0, got {value!r}.")

    def absolute(self, unknowns: int) -> float:
        """The part of a threshold that does not depend on ||f(z)||."""
        return self.atol * math.sqrt(unknowns)

    def threshold(self, size: Tensor, unknowns: int) -> Tensor:
        """Largest residual that counts as converged, (B,), where ``size`` is ||f(z)|| (B,)."""
        return size * self.rtol + self.absolute(unknowns)
