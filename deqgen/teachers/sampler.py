"""The one sampling loop: follow the probability-flow ODE from noise to image.

A ``Sampler`` puts together a method (one step), a schedule (where the steps are) and perhaps churn
(fresh noise before each step). The step at hand is all that the loop knows of any of them.

Letters: B samples, C channels, H height, W width, N steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from deqgen.teachers.churn import Churn
from deqgen.teachers.guidance import Guidance, null_label_of
from deqgen.teachers.methods import Method, make_method
from deqgen.teachers.names import build
from deqgen.teachers.protocol import CountingDenoiser, Denoiser
from deqgen.teachers.schedules import Karras, Schedule, make_schedule


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How to sample: a method, a schedule, a number of steps, and churn if any.

    The default is EDM's for CIFAR-10: 18 Heun steps, 35 evaluations of the network an image.

    Args:
        method: ``"heun"``, ``"euler"``, ``"dpmpp-2m"`` or an object like :class:`Heun`.
        schedule: ``"karras"``, ``"linear"``, ``"ve"``, ``"vp"`` or an object like :class:`Karras`.
        steps: N, at least 1.
        churn: fresh noise before each step; ``None`` is deterministic sampling. A multi-step method
            forgets where noise was added, since what it remembers belongs to another path: there
            ``"dpmpp-2m"`` is of first order.

    Raises:
        ValueError: unknown name, or ``steps`` below 1.
        TypeError: steps that are no integer, churn that is no :class:`Churn`, or a method or a
            schedule that is neither a name nor such an object.
    """

    method: str | Method = "heun"
    schedule: str | Schedule = field(default_factory=Karras)
    steps: int = 18
    churn: Churn | None = None

    def __post_init__(self) -> None:
        make_method(self.method)
        make_schedule(self.schedule)
        if type(self.steps) is not int:
            raise TypeError(f"steps must be an integer, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not isinstance(self.churn, Churn | None):
            raise TypeError(f"churn must be a Churn or None, got {self.churn!r}")

    @property
    def stochastic(self) -> bool:
        """Whether sampling draws noise on the way, and so needs a generator a sample."""
        return self.churn is not None

    def sigmas(self) -> list[float]:
        """The N + 1 noise levels, decreasing, the last zero."""
        levels: list[float] = make_schedule(self.schedule).sigmas(self.steps).tolist()
        return levels

    def nfe(self, guidance: Guidance | None = None) -> int:
        """Network evaluations an image costs; a guided evaluation counts as two.

        Counted, on one image of one pixel, which takes milliseconds.
        """
        counter = CountingDenoiser(lambda x, sigma, label=None, /: torch.zeros_like(x))
        sample(
            counter,
            torch.zeros(1, 1, 1, 1),
            torch.zeros(1, dtype=torch.int64),
            sampler=self,
            guidance=guidance,
            null_label=1,
            generators=[torch.Generator()] if self.stochastic else None,
        )
        return counter.rows

    def describe(self) -> dict[str, Any]:
        """Plain data, read back by :meth:`from_dict`; without churn it is not mentioned."""
        churn = {} if self.churn is None else {"churn": self.churn.describe()}
        return {
            "method": make_method(self.method).name,
            "schedule": make_schedule(self.schedule).describe(),
            "steps": self.steps,
            **churn,
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
        if options.get("churn") is not None:
            options["churn"] = build("churn", {"churn": Churn}, "churn", dict(options["churn"]))
        return build("sampler", {"sampler": cls}, "sampler", options)


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    label: Tensor | None = None,
    *,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    null_label: int | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Turn noise into images (EDM, arXiv 2206.00364, Algorithm 2).

    The state of the ODE is float64 whatever the network computes in, as in EDM: sigma spans four
    to five decades, and this way only the network rounds.

    Args:
        denoiser: the model; called in the dtype of ``noise``.
        noise: standard normal, ``(B, C, H, W)``; scaled here to the first level of the schedule.
        label: classes, ``(B,)`` int64, or ``None``.
        sampler: method, schedule, steps and churn; EDM's 18 Heun steps by default.
        guidance: classifier-free guidance; needs ``label``.
        null_label: what means "no class" to the denoiser; its attribute ``num_classes`` by default.
        generators: one on the CPU a sample, for churn; used after whatever it has already given
            (noise and class, in EDM's order). A deterministic sampler ignores them.

    Returns:
        Images in about [-1, 1], ``(B, C, H, W)`` float64.

    Raises:
        ValueError: noise that is not ``(B, C, H, W)`` floating point, guidance without a label, or
            churn without one generator a sample.
        TypeError: guidance with a denoiser that does not say what means "no class".
    """
    sampler, guidance = sampler or Sampler(), guidance or Guidance()
    null = check_inputs(denoiser, noise, label, guidance, null_label)
    drawn = check_generators(sampler, generators, len(noise))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels = torch.full((len(x),), sigma, dtype=noise.dtype, device=x.device)  # (B,)
        given = x.to(noise.dtype)  # (B, C, H, W)
        if label is not None and guidance.active(sigma):
            return guidance.denoise(denoiser, given, levels, label, null).to(x.dtype)
        return denoiser(given, levels, label).to(x.dtype)  # (B, C, H, W)

    method, sigmas = make_method(sampler.method), sampler.sigmas()
    x, memory = noise.to(torch.float64) * sigmas[0], None  # (B, C, H, W)
    for sigma, sigma_next in pairwise(sigmas):
        start = sigma
        if sampler.churn is not None:
            start = sampler.churn.raised(sigma, sampler.steps)
            x = sampler.churn.add(x, sigma, start, drawn)  # (B, C, H, W)
            memory = memory if start == sigma else None
        x, memory = method.step(denoise, x, start, sigma_next, memory)  # (B, C, H, W)
    return x


def check_inputs(
    denoiser: Denoiser,
    noise: Tensor,
    label: Tensor | None,
    guidance: Guidance,
    null_label: int | None,
) -> int:
    """Check what every way of sampling is given; return the label that means "no class"."""
    if noise.ndim != 4 or not noise.is_floating_point():
        raise ValueError(
            f"noise must be floating point (B, C, H, W), got {noise.dtype} {tuple(noise.shape)}"
        )
    if guidance.scale == 1:
        return null_label or 0
    if label is None:
        raise ValueError(f"guidance (scale {guidance.scale}) needs labels, and label is None")
    return null_label_of(denoiser) if null_label is None else null_label


def check_generators(
    sampler: Sampler, generators: Sequence[torch.Generator] | None, batch: int
) -> Sequence[torch.Generator]:
    """Return the generators that a stochastic sampler will use; none for a deterministic one."""
    if not sampler.stochastic:
        return ()
    given = "none" if generators is None else str(len(generators))
    if generators is None or len(generators) != batch:
        raise ValueError(
            "this sampler adds noise on the way (churn) and needs one CPU generator a sample: "
            f"{batch} for this batch, got {given}. The generators of the samples' seeds, which "
            "have already given the noise (and the class), go on from there."
        )
    wrong = next((g for g in generators if g.device.type != "cpu"), None)
    if wrong is not None:
        raise ValueError(f"generators must be on the CPU, got one on {wrong.device}")
    return generators
