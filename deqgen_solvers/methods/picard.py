"""Picard iteration: take the image as the next point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deqgen_solvers.methods.options import check_damping
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver


@register_solver("picard")
@dataclass(frozen=True, kw_only=True)
class Picard:
    """``z <- z + damping * (f(z) - z)``; converges where f contracts.

    Damping below 1 helps where f overshoots (eigenvalues of the Jacobian left of -1) and slows
    everything else. It does not make convergence look closer than it is: the driver's residual is
    that of f, not of the damped step.

    Source: S. Banach, Fund. Math. 3 (1922).

    Args:
        damping: length of the step, in (0, 1]; 1 is undamped.

    Raises:
        OptionError: damping outside (0, 1].
        OptionTypeError: damping is no real number.
    """

    references: ClassVar[tuple[str, ...]] = ("banach1922operations",)
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_damping("Picard", self.damping)

    def init(self, z0: Tensor) -> None:
        """No memory."""

    def step(self, f: Function, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
        """Propose the next iterate (B, N)."""
        return (fz if self.damping == 1 else z.lerp(fz, self.damping)), None
