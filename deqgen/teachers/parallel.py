"""Sampling parallel in time: all steps of a sample at once, as one fixed point.

A serial sampler takes step after step. Here a guess of the whole trajectory is improved, sweep by
sweep: a sweep takes all steps at once, each from the guessed point before it, and adds up how far
they went. The serial trajectory is the fixed point of that (the Picard iteration of Shih et al.
2023, arXiv 2305.16317; the joint equilibrium of Pokle et al. 2022, arXiv 2210.12867), and any
solver may look for it. The network is asked more often, but in a few large batches instead of many
small ones, one after another.

Letters: B samples, C channels, H height, W width, N steps, R rows asked for at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from deqgen.solvers import Solver, Tolerance, solve
from deqgen.teachers.guidance import Guidance
from deqgen.teachers.methods import Method, make_method
from deqgen.teachers.protocol import CountingDenoiser, Denoiser
from deqgen.teachers.sampler import Sampler, check_inputs

# Points are divided by the standard deviation that images of this one (EDM's sigma_data) have at
# their level. Residuals then mean the same at every level, and information runs along a trajectory
# that hardly moves: Picard takes little more than half the sweeps that it takes on x itself. It
# decides the speed and never the images.
_SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class ParallelReport:
    """What sampling in parallel took.

    Attributes:
        steps: N, the steps of the sampler.
        sweeps: times that all steps (of a window) were taken at once; they follow one another.
        calls: calls of the denoiser, which follow one another; a Heun sweep needs two, and a sweep
            that finds all points where they were needs none.
        serial_calls: the same for serial sampling.
        evaluations: rows that the denoiser was given, an image; a guided evaluation counts as two.
        serial_evaluations: the same for serial sampling.
        residual: ``(B,)`` float64, root mean square change by one more sweep, in the units of
            ``tol``; the largest over the windows.
        converged: ``(B,)`` bool, whether that met ``tol`` in every window.
    """

    steps: int
    sweeps: int
    calls: int
    serial_calls: int
    evaluations: float
    serial_evaluations: int
    residual: Tensor
    converged: Tensor


def sample_parallel(
    denoiser: Denoiser,
    noise: Tensor,
    label: Tensor | None = None,
    *,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    null_label: int | None = None,
    solver: str | Solver[Any] = "picard",
    tol: float = 1e-3,
    window: int | None = None,
    max_sweeps: int | None = None,
) -> tuple[Tensor, ParallelReport]:
    """Look for the images of :func:`sample` in fewer sequential calls.

    ``tol`` bounds how much one more sweep would change a trajectory, and not the distance to the
    serial images, which may be many times larger, the more so with windows, whose errors add up
    (measured with windows: 0.177 at ``tol=1e-2``, 0.025 at ``tol=1e-3``). Only ``tol=0`` promises
    the serial images, to rounding. A sample that has not converged comes back like any other: only
    the report tells.

    Nothing is recorded for autograd. A sample that has converged leaves the batch.

    Args:
        denoiser: the model; called in the dtype of ``noise`` on up to ``B * window`` rows.
        noise: standard normal, ``(B, C, H, W)``.
        label: classes, ``(B,)`` int64, or ``None``.
        sampler: as in :func:`sample`, without churn.
        guidance: as in :func:`sample`.
        null_label: as in :func:`sample`.
        solver: a name out of ``deqgen.solvers.available_solvers()`` or an object. After N sweeps
            Picard is exact, whatever the denoiser: a sweep makes at least one more point right.
        tol: largest root mean square change by one more sweep, over the N points of a trajectory,
            each in units of its standard deviation; see above for what it does not promise.
        window: take so many steps at once and go on where they end; ``None`` takes all N. A small
            window asks the network less often in all, in more sequential calls. It needs a
            method without memory, such as Heun.
        max_sweeps: most sweeps of a window; by default one more than its steps, with which Picard
            always converges (the last one only confirms).

    Returns:
        Images, ``(B, C, H, W)`` float64, and what they took.

    Raises:
        ValueError: what :func:`sample` refuses, a sampler with churn, a window or a number of
            sweeps below 1, a tolerance that is negative or not finite, an unknown solver, or a
            window shorter than N with a multi-step method; all before the denoiser is called.
        TypeError: as :func:`sample`.
    """
    sampler, guidance = sampler or Sampler(), guidance or Guidance()
    null = check_inputs(denoiser, noise, label, guidance, null_label)
    window = sampler.steps if window is None else window
    _check(sampler, window, max_sweeps, tol)
    counter, sigmas = CountingDenoiser(denoiser), sampler.sigmas()
    x = noise.to(torch.float64) * sigmas[0]  # (B, C, H, W)
    solutions, residuals = [], []
    for first in range(0, sampler.steps, window):
        levels = sigmas[first : first + window + 1]
        part = _Window(make_method(sampler.method), counter, guidance, null, noise.dtype, levels)
        solution = solve(
            part.sweep,
            part.guess(x),
            (x, label),
            solver,
            tol=Tolerance(atol=tol, rtol=0.0),
            max_steps=(max_sweeps or len(levels)) - 1,
            compact=True,
        )
        assert solution.fz is not None and solution.residual is not None  # since tol is given
        x = part.end(solution.fz)  # (B, C, H, W)
        residuals.append(solution.residual / math.sqrt(part.unknowns(x)))  # (B,)
        solutions.append(solution)
    return x, ParallelReport(
        steps=sampler.steps,
        sweeps=sum(s.nfe for s in solutions),
        calls=counter.calls,
        serial_calls=sampler.nfe(),
        evaluations=counter.rows / max(len(noise), 1),
        serial_evaluations=sampler.nfe(guidance),
        residual=torch.stack(residuals).amax(0),
        converged=torch.stack([s.converged for s in solutions]).all(0),
    )


def _check(sampler: Sampler, window: int, max_sweeps: int | None, tol: float) -> None:
    if sampler.stochastic:
        raise ValueError(
            "sampling in parallel is deterministic, and this sampler has churn: "
            "use churn=None, or sample one step after another"
        )
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if max_sweeps is not None and max_sweeps < 1:
        raise ValueError(f"max_sweeps must be at least 1, got {max_sweeps}")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be finite and not negative, got {tol}")
    if window < sampler.steps and _remembers(sampler):
        raise ValueError(
            f"{make_method(sampler.method).name!r} is a multi-step method, and a window would cut "
            "off what it remembers: leave window out, or use a method without memory, such as "
            "'heun'"
        )


def _remembers(sampler: Sampler) -> bool:
    """Whether the first step leaves something in memory; tried on one image of one pixel."""
    x, sigmas = torch.zeros(1, 1, 1, 1, dtype=torch.float64), sampler.sigmas()
    method = make_method(sampler.method)
    _, memory = method.step(lambda x, sigma: torch.zeros_like(x), x, sigmas[0], sigmas[1], None)
    return memory is not None


class _Window:
    """Some consecutive steps as one map, whose state is the scaled points after each of them."""

    def __init__(
        self,
        method: Method,
        denoiser: Denoiser,
        guidance: Guidance,
        null_label: int,
        dtype: torch.dtype,
        sigmas: Sequence[float],
    ) -> None:
        self.method, self.denoiser, self.guidance = method, denoiser, guidance
        self.null_label, self.dtype, self.sigmas = null_label, dtype, sigmas
        level = torch.tensor(sigmas, dtype=torch.float64).reshape(1, -1, 1, 1, 1)
        self.answers = [_Answers() for _ in sigmas[1:]]  # one a step
        self.scale = (level**2 + _SIGMA_DATA**2).sqrt()  # (1, N + 1, 1, 1, 1)

    def unknowns(self, x: Tensor) -> int:
        """Numbers in the state of one sample of x (B, C, H, W)."""
        return (len(self.sigmas) - 1) * math.prod(x.shape[1:])

    def guess(self, x: Tensor) -> Tensor:
        """A first state (B, N, C, H, W): the scaled x (B, C, H, W) after all steps."""
        scale = self.scale.to(x.device)
        return (x.unsqueeze(1) / scale[:, :1]).repeat(1, len(self.sigmas) - 1, 1, 1, 1)

    def end(self, state: Tensor) -> Tensor:
        """The point (B, C, H, W) after the last step."""
        return state[:, -1] * self.scale[:, -1].to(state.device)

    def sweep(self, state: Tensor, x: Tensor, label: Tensor | None) -> Tensor:
        """Take all steps, each from where ``state`` (B, N, C, H, W) says that it begins."""
        scale = self.scale.to(state.device)
        start = torch.cat([(x.unsqueeze(1) / scale[:, :1]), state[:, :-1]], 1)  # (B, N, C, H, W)
        ends = self._steps((start * scale[:, :-1]).unbind(1), label)  # N times (B, C, H, W)
        moved = torch.stack(ends, 1) / scale[:, 1:] - start  # (B, N, C, H, W)
        return start[:, :1] + moved.cumsum(1)

    def _steps(self, points: Sequence[Tensor], label: Tensor | None) -> list[Tensor]:
        """Where all N steps end: N times (B, C, H, W).

        A step is run until it asks for a denoised image that is not known yet. What all steps ask
        for is then found in one call, and they run again: their own arithmetic costs next to
        nothing. A multi-step method finds in its memory what the step before found in this sweep.
        Answers stay known, so that a point which did not move since the last sweep costs nothing:
        under Picard these are the first ones, one more with each sweep.
        """
        while True:
            ends, asked, memory = [], [], None
            for known, x, levels in zip(self.answers, points, pairwise(self.sigmas), strict=True):
                try:
                    end, memory = self.method.step(known.from_the_first(), x, *levels, memory)
                    ends.append(end)
                except _Unknown:
                    asked.append(known)
                    memory = None  # not known yet either
            if not asked:
                return ends
            found = self._denoise([known.question for known in asked], label)
            for known, clean in zip(asked, found, strict=True):
                known.learn(clean)

    def _denoise(
        self, questions: list[tuple[Tensor, float]], label: Tensor | None
    ) -> Sequence[Tensor]:
        """Denoise several batches (B, C, H, W), each at its own level, in one call."""
        x, batch = torch.cat([x for x, _ in questions]), len(questions[0][0])  # (R, C, H, W)
        levels = torch.tensor([level for _, level in questions], dtype=self.dtype)
        sigma = levels.repeat_interleave(batch).to(x.device)  # (R,)
        labels = None if label is None else label.repeat(len(questions))  # (R,)
        active = torch.tensor([self.guidance.active(level) for _, level in questions])
        given = x.to(self.dtype)  # (R, C, H, W)
        if labels is None or not bool(active.any()):
            clean = self.denoiser(given, sigma, labels)  # (R, C, H, W)
        else:
            rows = active.repeat_interleave(batch).nonzero().flatten().to(x.device)
            clean = self.guidance.denoise(  # (R, C, H, W)
                self.denoiser, given, sigma, labels, self.null_label, rows
            )
        return clean.to(x.dtype).chunk(len(questions))


class _Unknown(Exception):
    """A step asked for a denoised image that is not known yet."""


class _Answers:
    """A denoiser for one step that knows some answers, in the order in which they were asked for.

    An answer is forgotten when another question comes in its place: the point has moved, rows have
    left the batch, or the question depends on memory, which came later.
    """

    def __init__(self) -> None:
        self.known: list[tuple[Tensor, float, Tensor]] = []
        self.given = 0

    def from_the_first(self) -> _Answers:
        """Begin again with the first question."""
        self.given = 0
        return self

    def learn(self, clean: Tensor) -> None:
        """Take in the answer to ``question``."""
        self.known.append((*self.question, clean))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Answer, or note the question and raise ``_Unknown``."""
        if self.given < len(self.known):
            x_known, sigma_known, clean = self.known[self.given]
            if sigma == sigma_known and _same(x, x_known):
                self.given += 1
                return clean
            del self.known[self.given :]
        self.question = (x, sigma)
        raise _Unknown


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
