"""Methods: one step of the probability-flow ODE, from a noise level down to the next.

The ODE is ``dx/dsigma = (x - D(x; sigma)) / sigma`` (EDM, arXiv 2206.00364, equations 1 and 3 with
``sigma(t) = t`` and ``s(t) = 1``). Adding a method adds a class with ``step`` and a line in
``METHODS``; the loop of ``sampler.py`` and the sweeps of ``parallel.py`` stay as they are.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from deqgen.teachers.names import unknown

Denoise = Callable[
    [Tensor, float], Tensor
]  # (x (B,C,H,W) float64, sigma) -> x0, same shape and dtype


class Method(Protocol):
    """One step of the ODE, from noise level ``sigma`` down to ``sigma_next``.

    ``memory`` is what a multi-step method keeps from the step before; it is ``None`` at first, and
    stays so for a method that keeps nothing. Nothing else may be kept: a step is a function of its
    arguments. ``sigma_next`` is zero in the last step, and ``denoise`` must not be asked there,
    where the slope is 0/0.
    """

    name: ClassVar[str]

    def step(
        self, denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Any
    ) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Euler:
    """First order, one evaluation a step; with EDM's parametrisation this is DDIM."""

    name: ClassVar[str] = "euler"

    def step(
        self, denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """Follow the slope at the start of the step."""
        slope = (x - denoise(x, sigma)) / sigma  # (B, C, H, W)
        return x + (sigma_next - sigma) * slope, None


@dataclass(frozen=True)
class Heun:
    """Second order, two evaluations a step, one on the step to zero (EDM, Algorithm 1)."""

    name: ClassVar[str] = "heun"

    def step(
        self, denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Any = None
    ) -> tuple[Tensor, Any]:
        """Follow the mean of the slopes at both ends of the step."""
        slope = (x - denoise(x, sigma)) / sigma  # (B, C, H, W)
        ahead = x + (sigma_next - sigma) * slope  # (B, C, H, W)
        if sigma_next > 0:
            slope_ahead = (ahead - denoise(ahead, sigma_next)) / sigma_next  # (B, C, H, W)
            ahead = x + (sigma_next - sigma) * (0.5 * slope + 0.5 * slope_ahead)  # (B, C, H, W)
        return ahead, None


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++(2M): second order, one evaluation a step (arXiv 2211.01095, Algorithm 2).

    In ``l = -ln sigma`` the ODE is linear but for the denoised image, and its solution over a step
    is ``x' = (sigma' / sigma) x + (1 - sigma' / sigma) D``, exact for a constant D. Here D is
    extrapolated in ``l`` to the middle of the step, from its values at the start of this step and
    of the one before. The first step knows no earlier value and the step to zero is infinitely
    long in ``l``: both are of first order, and then this is :class:`Euler`.
    """

    name: ClassVar[str] = "dpmpp-2m"

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        sigma: float,
        sigma_next: float,
        memory: tuple[Tensor, float] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, float]]:
        """Hold the extrapolated image over the step; keep the image and its level."""
        clean = denoise(x, sigma)  # (B, C, H, W)
        middle = clean
        if memory is not None and sigma_next > 0:
            before, sigma_before = memory
            share = 0.5 * math.log(sigma / sigma_next) / math.log(sigma_before / sigma)
            middle = clean + share * (clean - before)  # (B, C, H, W)
        ratio = sigma_next / sigma
        return ratio * x + (1 - ratio) * middle, (clean, sigma)


METHODS: dict[str, Callable[..., Method]] = {
    Euler.name: Euler,
    Heun.name: Heun,
    DPMpp2M.name: DPMpp2M,
}


def make_method(method: str | Method) -> Method:
    """Return a method given by name or already made.

    Raises:
        ValueError: unknown name. TypeError: neither a name nor an object with ``step``.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not hasattr(method, "step"):
            raise TypeError(
                "a sampling method is a name or an object such as Heun(), with step and name; got "
                f"{method!r}"
            )
        return method
    if method not in METHODS:
        raise ValueError(unknown("sampling method", method, METHODS))
    return METHODS[method]()
