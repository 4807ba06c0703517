"""Sampling parallel in time: calls of the network one after another, and evaluations an image.

    python benchmarks/parallel_sampling.py --output docs/results/parallel/one-thread.json

The embedded teacher draws two images with several samplers, serially and with all steps (or a
window of them) as one fixed point. "in a row" counts calls that must follow one another: the time
on a device with room for more rows. "an image" counts rows: the time on one that is busy already,
such as one thread. "difference" is the largest from the serial image, whose values lie in [-1, 1];
half a byte is 0.004. Some minutes on one thread.

Letters: B samples, C channels, H height, W width, N steps.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import tyro
from report import Options, Parts, report
from torch import Tensor

from deqgen.data import noise_for
from deqgen.teachers import Denoiser, Sampler, load_teacher, sample, sample_parallel

IMAGES = 2
TOLERANCES = (1e-2, 1e-3)
SOLVERS = ("picard", "anderson")
CASES: tuple[tuple[str, int, tuple[int | None, ...]], ...] = (
    ("heun", 18, (None, 6)),
    ("dpmpp-2m", 18, (None,)),
    ("euler", 64, (None, 16)),
    ("euler", 128, (None, 32)),
)
"""Method, steps and windows."""


def parallel_sampling(_rounds: int) -> list[dict[str, Any]]:
    """Measure all cases; guidance is left out, which would double serial and parallel alike."""
    teacher, rows = load_teacher("cifar10-small"), []
    noise = noise_for(range(IMAGES), teacher.image_shape)  # (B, C, H, W)
    label = torch.arange(IMAGES)  # (B,)
    for method, steps, windows in CASES:
        sampler = Sampler(method=method, steps=steps)
        with torch.no_grad():
            serial = sample(teacher.denoiser, noise, label, sampler=sampler)  # (B, C, H, W)
        for window, solver, tol in product(windows, SOLVERS, TOLERANCES):
            options = {"solver": solver, "tol": tol, "window": window}
            rows.append(compare(teacher.denoiser, noise, label, serial, sampler, options))
    return rows


def compare(
    denoiser: Denoiser,
    noise: Tensor,
    label: Tensor,
    serial: Tensor,
    sampler: Sampler,
    options: dict[str, Any],
) -> dict[str, Any]:
    """One row: what parallel sampling took, beside the serial images (B, C, H, W)."""
    images, took = sample_parallel(denoiser, noise, label, sampler=sampler, **options)
    assert bool(took.converged.all()), took
    return {
        "method": sampler.method,
        "steps": sampler.steps,
        "window": options["window"],
        "solver": options["solver"],
        "tol": options["tol"],
        "sweeps": took.sweeps,
        "in a row": took.calls,
        "serial": took.serial_calls,
        "ratio": took.serial_calls / took.calls,
        "an image": took.evaluations,
        "times serial": took.evaluations / took.serial_evaluations,
        "difference": (images - serial).abs().max().item(),
    }


PARTS: Parts = {"sampling": parallel_sampling}


def main(options: Options) -> None:
    """Measure, print and write."""
    report("parallel_sampling", "Serial sampling beside sample_parallel", PARTS, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, default=Options(rounds=1)))
