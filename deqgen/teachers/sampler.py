"""The one sampling loop: follow the probability-flow ODE from noise to image.

The ODE is ``dx/dsigma = (x - D(x; sigma)) / sigma`` (EDM, arXiv 2206.00364, equations 1 and 3 with
``sigma(t) = t`` and ``s(t) = 1``), and a method is one step of it. Adding a method adds a class
with ``step`` and ``visits``; the loop stays as it is.

Letters: B samples, C channels, H height, W width, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from deqgen.teachers.guidance import Guidance, null_label_of
from deqgen.teachers.names import build, unknown
from deqgen.teachers.protocol import Denoiser
from deqgen.teachers.schedules import Karras, Schedule, make_schedule

Denoise = Callable[
    [Tensor, float], Tensor
]  # (x (B,C,H,W) float64, sigma) -> x0, same shape and dtype


class Method(Protocol):
    """One step of the ODE, from noise level ``sigma`` down to ``sigma_next``.

    ``memory`` is what a multi-step method keeps from the step before; it is ``None`` at first, and
    stays so for a method that keeps nothing. ``visits`` names the levels at which ``step`` calls
    ``denoise``, in order, so that the cost is known before sampling.
    """

    name: ClassVar[str]

    def visits(self, sigma: float, sigma_next: float) -> tuple[float, ...]: ...

    def step(
        self, denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, memory: Any
    ) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Euler:
    """First order, one evaluation a step; with EDM's parametrisation this is DDIM."""

    name: ClassVar[str] = "euler"

    def visits(self, sigma: float, sigma_next: float) -> tuple[float, ...]:
        """Levels evaluated: where the step starts."""
        return (sigma,)

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

    def visits(self, sigma: float, sigma_next: float) -> tuple[float, ...]:
        """Levels evaluated: both ends of the step, but never zero, where the slope is 0/0."""
        return (sigma, sigma_next) if sigma_next > 0 else (sigma,)

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


METHODS: dict[str, Callable[..., Method]] = {Euler.name: Euler, Heun.name: Heun}


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How to sample: a method, a schedule and a number of steps.

    The default is EDM's for CIFAR-10: 18 Heun steps, 35 evaluations of the network an image.

    Args:
        method: ``"heun"``, ``"euler"`` or an object like :class:`Heun`.
        schedule: ``"karras"`` or an object like :class:`Karras`.
        steps: N, at least 1.

    Raises:
        ValueError: unknown name, or ``steps`` below 1.
    """

    method: str | Method = "heun"
    schedule: str | Schedule = field(default_factory=Karras)
    steps: int = 18

    def __post_init__(self) -> None:
        make_method(self.method)
        make_schedule(self.schedule)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def sigmas(self) -> list[float]:
        """The N + 1 noise levels, decreasing, the last zero."""
        levels: list[float] = make_schedule(self.schedule).sigmas(self.steps).tolist()
        return levels

    def visits(self) -> list[float]:
        """Every noise level at which the denoiser will be evaluated, in order."""
        method = make_method(self.method)
        return [level for ends in pairwise(self.sigmas()) for level in method.visits(*ends)]

    def nfe(self, guidance: Guidance | None = None) -> int:
        """Network evaluations that one image will cost; a guided evaluation counts as two."""
        guidance = guidance or Guidance()
        return sum(2 if guidance.active(level) else 1 for level in self.visits())

    def describe(self) -> dict[str, Any]:
        """Plain data, read back by :meth:`from_dict`."""
        return {
            "method": make_method(self.method).name,
            "schedule": make_schedule(self.schedule).describe(),
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sampler:
        """Rebuild a sampler from :meth:`describe`.

        Raises:
            ValueError: unknown method or schedule. TypeError: unknown option.
        """
        options = dict(data)
        schedule = dict(options.pop("schedule", {"name": "karras"}))
        options["schedule"] = make_schedule(schedule.pop("name", "karras"), **schedule)
        return build("sampler", {"sampler": cls}, "sampler", options)


def make_method(method: str | Method) -> Method:
    """Return a method given by name or already made; ValueError for an unknown name."""
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ValueError(unknown("sampling method", method, METHODS))
    return METHODS[method]()


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    label: Tensor | None = None,
    *,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    null_label: int | None = None,
) -> Tensor:
    """Turn noise into images (EDM, arXiv 2206.00364, Algorithm 2 without churn).

    The state of the ODE is float64 whatever the network computes in, as in EDM: sigma spans four
    to five decades, and this way only the network rounds.

    Args:
        denoiser: the model; called in the dtype of ``noise``.
        noise: standard normal, ``(B, C, H, W)``; scaled here to the first level of the schedule.
        label: classes, ``(B,)`` int64, or ``None``.
        sampler: method, schedule and steps; EDM's 18 Heun steps by default.
        guidance: classifier-free guidance; needs ``label``.
        null_label: what means "no class" to the denoiser; its attribute ``num_classes`` by default.

    Returns:
        Images in about [-1, 1], ``(B, C, H, W)`` float64.

    Raises:
        ValueError: noise that is not ``(B, C, H, W)`` floating point, or guidance without a label.
        TypeError: guidance with a denoiser that does not say what means "no class".
    """
    sampler, guidance = sampler or Sampler(), guidance or Guidance()
    if noise.ndim != 4 or not noise.is_floating_point():
        raise ValueError(
            f"noise must be floating point (B, C, H, W), got {noise.dtype} {tuple(noise.shape)}"
        )
    if label is None and guidance.scale != 1:
        raise ValueError(f"guidance (scale {guidance.scale}) needs labels, and label is None")
    guided = label is not None and guidance.scale != 1
    null = null_label_of(denoiser) if guided and null_label is None else null_label or 0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels = torch.full((len(x),), sigma, dtype=noise.dtype, device=x.device)  # (B,)
        given = x.to(noise.dtype)  # (B, C, H, W)
        if label is not None and guidance.active(sigma):
            return guidance.denoise(denoiser, given, levels, label, null).to(x.dtype)
        return denoiser(given, levels, label).to(x.dtype)  # (B, C, H, W)

    method, sigmas = make_method(sampler.method), sampler.sigmas()
    x, memory = noise.to(torch.float64) * sigmas[0], None  # (B, C, H, W)
    for sigma, sigma_next in pairwise(sigmas):
        x, memory = method.step(denoise, x, sigma, sigma_next, memory)  # (B, C, H, W)
    return x
