"""Noise schedules: the levels sigma at which a sampler stops on its way from noise to image.

Each schedule is the discretisation of one of the methods that EDM (arXiv 2206.00364, Table 1)
compares, written as levels: N of them, then zero.

Letters: N steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
class _Described:
    """What all schedules here say of themselves."""

    name: ClassVar[str]

    def describe(self) -> dict[str, Any]:
        """Name and options as plain data."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Karras(_Described):
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
        _check_ends(self.sigma_min, self.sigma_max)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def sigmas(self, steps: int) -> Tensor:
        """Levels ``(N + 1,)`` float64. One step goes from ``sigma_max`` straight to zero."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return _then_zero((high + _fractions(steps) * (low - high)) ** self.rho)


@dataclass(frozen=True, kw_only=True)
class Linear(_Described):
    """Levels evenly spaced in sigma, then zero: :class:`Karras` with ``rho=1``.

    Args:
        sigma_min: last level before zero.
        sigma_max: first level.

    Raises:
        ValueError: not ``0 < sigma_min < sigma_max``.
    """

    name: ClassVar[str] = "linear"

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_ends(self.sigma_min, self.sigma_max)

    def sigmas(self, steps: int) -> Tensor:
        """Levels ``(N + 1,)`` float64."""
        span = self.sigma_min - self.sigma_max
        return _then_zero(self.sigma_max + _fractions(steps) * span)


@dataclass(frozen=True, kw_only=True)
class VP(_Described):
    """The levels of variance-preserving diffusion, evenly spaced in its time (EDM, Table 1).

    Time falls from 1 to ``epsilon``, and ``sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1``
    (Song et al. 2021, arXiv 2011.13456, section 3.4). The defaults give levels from 152 to 0.01.

    Args:
        beta_d: slope of the noise rate, beta(t) = beta_min + beta_d t.
        beta_min: the rate at time zero.
        epsilon: time of the last level before zero, in (0, 1).

    Raises:
        ValueError: a rate that is not positive and finite, or ``epsilon`` outside (0, 1).
    """

    name: ClassVar[str] = "vp"

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.beta_d < math.inf and 0 < self.beta_min < math.inf):
            raise ValueError(
                "a VP schedule needs positive rates, "
                f"got beta_d={self.beta_d} and beta_min={self.beta_min}"
            )
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must lie between 0 and 1, got {self.epsilon}")

    def sigmas(self, steps: int) -> Tensor:
        """Levels ``(N + 1,)`` float64."""
        time = 1 + _fractions(steps) * (self.epsilon - 1)  # (N,)
        return _then_zero((self.beta_d * time**2 / 2 + self.beta_min * time).expm1().sqrt())


@dataclass(frozen=True, kw_only=True)
class VE(_Described):
    """The levels of variance-exploding diffusion: a geometric sequence, then zero (EDM, Table 1).

    Args:
        sigma_min: last level before zero.
        sigma_max: first level.

    Raises:
        ValueError: not ``0 < sigma_min < sigma_max``.
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _check_ends(self.sigma_min, self.sigma_max)

    def sigmas(self, steps: int) -> Tensor:
        """Levels ``(N + 1,)`` float64."""
        ratio = self.sigma_min / self.sigma_max
        return _then_zero(self.sigma_max * ratio ** _fractions(steps))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    Karras.name: Karras,
    Linear.name: Linear,
    VE.name: VE,
    VP.name: VP,
}


def make_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """Return a schedule given by name (with options) or already made.

    Raises:
        ValueError: unknown name. TypeError: unknown option, or neither a name nor an object with
            ``sigmas``.
    """
    if isinstance(schedule, str):
        return build("schedule", SCHEDULES, schedule, options)
    if isinstance(schedule, type) or not hasattr(schedule, "sigmas"):
        raise TypeError(
            "a schedule is a name or an object such as Karras(sigma_max=40.0), with sigmas, "
            f"describe and name; got {schedule!r}"
        )
    return schedule


def _check_ends(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            "a schedule needs 0 < sigma_min < sigma_max, "
            f"got sigma_min={sigma_min} and sigma_max={sigma_max}"
        )


def _fractions(steps: int) -> Tensor:
    """How far each level is on the way to the last one before zero, ``(N,)`` from 0 to 1."""
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, got {steps}")
    return torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)


def _then_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])  # (N + 1,)
