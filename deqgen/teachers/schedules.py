"""Noise schedules: the levels sigma at which a sampler stops on its way from noise to image.

Letters: N steps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from deqgen.teachers.names import build


class Schedule(Protocol):
    """Noise levels as a function of the number of steps.

    ``sigmas(steps)`` returns ``(N + 1,)`` float64 on the CPU, strictly decreasing, the last one
    zero. The first is the standard deviation to which unit noise is scaled.
    """

    name: ClassVar[str]

    def sigmas(self, steps: int) -> Tensor: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Karras:
    """Levels evenly spaced in ``sigma ** (1 / rho)``, then zero (EDM, arXiv 2206.00364, eq. 5).

    Args:
        sigma_min: last level before zero.
        sigma_max: first level.
        rho: 1 is linear; the larger, the more steps are spent at low noise.

    Raises:
        ValueError: not ``0 < sigma_min < sigma_max``, or ``rho`` not positive.
    """

    name: ClassVar[str] = "karras"

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "a schedule needs 0 < sigma_min < sigma_max, "
                f"got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}"
            )
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def sigmas(self, steps: int) -> Tensor:
        """Levels ``(N + 1,)`` float64. One step goes from ``sigma_max`` straight to zero."""
        if steps < 1:
            raise ValueError(f"a schedule needs at least one step, got {steps}")
        fraction = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)  # (N,) from 0 to 1
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        levels = (high + fraction * (low - high)) ** self.rho  # (N,)
        return torch.cat([levels, levels.new_zeros(1)])  # (N + 1,)

    def describe(self) -> dict[str, Any]:
        """Name and options as plain data."""
        return {"name": self.name, **asdict(self)}


SCHEDULES = {Karras.name: Karras}


def make_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """Return a schedule given by name (with options) or already made.

    Raises:
        ValueError: unknown name. TypeError: unknown option.
    """
    return (
        build("schedule", SCHEDULES, schedule, options) if isinstance(schedule, str) else schedule
    )
