"""Forward and backward through the blocks of a GET-T/2, halved: milliseconds, MiB of activations.

Each program spends the same 6 evaluations of the cell before anything that its estimator adds;
the last column is the memory with 12. "x unrolled" is the time over that of the same library's
plain `Unrolled`. The memory is what PyTorch's allocator holds at the peak of both passes beyond
the inputs, the weights and their gradients; with autocast it includes the weights in bfloat16.

Letters: B samples, L tokens, D width.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchdeq
from timing import interleaved
from torch import Tensor, nn
from torchdeq.utils import mem_gc

from deqgen.gradients import (
    JFB,
    SHINE,
    Forward,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    StochasticJFB,
    Unrolled,
)
from deqgen.memory import peak_memory
from deqgen.models import create_model
from deqgen_solvers import Broyden

BATCH, STEPS, MANY = 8, 6, 12
GAIN = 0.5
"""At random weights GAIN * blocks(z) is a contraction whose Jacobian has spectral radius 0.77."""

Program = Callable[[nn.Module, Tensor, tuple[Tensor, ...]], Tensor]
"""(cell, z0, injections) -> z, differentiable."""


class Cell(nn.Module):
    """The equilibrium blocks of a GET, made a contraction: z -> GAIN * blocks(z, injection)."""

    def __init__(self, name: str = "GET-T/2", **options: Any) -> None:
        super().__init__()
        model: Any = create_model(name, **options)
        self.blocks, self.iterate = model.deq_blocks, model.iterate

    def forward(self, z: Tensor, *injections: Tensor) -> Tensor:
        """Take z (B, L, D) to the same shape; injections are N of (B, L, 3*D)."""
        return GAIN * self.iterate(z, *injections)


def problem(batch: int, name: str = "GET-T/2", **options: Any) -> tuple[Any, Tensor, Any]:
    """The cell, z0 = 0 (B, L, D), and the injections of random noise, which want gradients."""
    model: Any = create_model(name, **options)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, *model.config.image_shape, generator=generator)
    with torch.no_grad():
        injections = tuple(u.requires_grad_() for u in model.embed(noise))
    z0 = torch.zeros(batch, model.config.tokens, model.config.width)
    return Cell(name, **options), z0, injections


def ours(estimator: GradientEstimator, forward: Forward) -> Program:
    """A program of deqgen."""
    return lambda cell, z0, u: estimator.differentiate(cell, z0, u, forward).z


def theirs(checkpoint: bool = False, f_tol: float = 0.0, **options: Any) -> Program:
    """A program of torchdeq; ``checkpoint`` is its mem_gc."""
    deq = torchdeq.get_deq(f_solver="anderson", f_tol=f_tol, **options).train()

    def run(cell: nn.Module, z0: Tensor, u: tuple[Tensor, ...]) -> Tensor:
        f = (lambda z: mem_gc(cell, (z, *u))) if checkpoint else (lambda z: cell(z, *u))
        z: Tensor = deq(f, z0)[0][-1]
        return z

    return run


def programs(steps: int) -> dict[str, dict[str, Program]]:
    """Programs by estimator and library, with so many evaluations of the forward solve."""
    budget = Forward(solver="anderson", tol=None, max_steps=steps)
    broyden = Forward(solver=Broyden(memory=steps), tol=None, max_steps=steps)
    half = (steps // 2, steps // 2)
    implicit = {"ift": True, "b_solver": "anderson", "b_max_iter": steps, "b_tol": 0.0}
    return {
        "unrolled": {
            "deqgen": ours(Unrolled(steps), budget),
            "torchdeq": theirs(grad=steps, f_max_iter=0),
        },
        "unrolled, checkpoint": {
            "deqgen": ours(Unrolled(steps, checkpoint=True), budget),
            "torchdeq": theirs(True, grad=steps, f_max_iter=0),
        },
        "reversible": {"deqgen": ours(Reversible(steps // 2), budget)},
        "implicit": {
            "deqgen": ours(Implicit(tol=None, max_steps=steps), budget),
            "torchdeq": theirs(f_max_iter=steps, **implicit),
        },
        "shine": {"deqgen": ours(SHINE(), broyden)},
        "phantom, unroll": {
            "deqgen": ours(Phantom(5, 0.5), budget),
            "torchdeq": theirs(grad=5, tau=0.5, f_max_iter=steps),
        },
        "phantom, neumann": {"deqgen": ours(Phantom(5, 0.5, "neumann"), budget)},
        "jfb": {"deqgen": ours(JFB(), budget), "torchdeq": theirs(grad=1, f_max_iter=steps)},
        "stochastic-jfb": {"deqgen": ours(StochasticJFB(half, half), budget)},
    }


def backward(program: Program, given: Any, half: bool) -> None:
    """One forward and backward pass; gradients are added up in place."""
    cell, z0, u = given
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        z = program(cell, z0, u)
    z.float().square().mean().backward()


def block_costs(rounds: int) -> list[dict[str, Any]]:
    """Measure every estimator of both libraries in both precisions."""
    given, rows = problem(BATCH), []
    memory = measure_in_a_process()
    for half in (False, True):
        running = {
            f"{estimator}/{library}": partial(backward, program, given, half)
            for estimator, libraries in programs(STEPS).items()
            for library, program in libraries.items()
        }
        times = interleaved(running, rounds, seconds=240)
        precision = "bfloat16" if half else "float32"
        rows += [costs(precision, name, times, memory[precision]) for name in programs(STEPS)]
    return rows


def costs(
    precision: str, name: str, times: dict[str, float], memory: dict[str, float]
) -> dict[str, Any]:
    """A line of the table."""
    mine, other = times[f"{name}/deqgen"], times.get(f"{name}/torchdeq")
    plain = times["unrolled/torchdeq"]
    return {
        "precision": precision,
        "estimator": name,
        "torchdeq, ms": other and 1e3 * other,
        "deqgen, ms": 1e3 * mine,
        "ratio": other and other / mine,
        "torchdeq, x unrolled": other and other / plain,
        "deqgen, x unrolled": mine / times["unrolled/deqgen"],
        "torchdeq, MiB": memory.get(f"{name}/torchdeq/{STEPS}"),
        "deqgen, MiB": memory[f"{name}/deqgen/{STEPS}"],
        f"deqgen, MiB at {MANY}": memory[f"{name}/deqgen/{MANY}"],
    }


def measure_in_a_process() -> dict[str, dict[str, float]]:
    """Run this file and read what it prints (the profiler writes to standard error)."""
    command = [sys.executable, __file__]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, dict[str, float]] = json.loads(done.stdout)
    return measured


def peak_memories(given: Any) -> dict[str, dict[str, float]]:
    """MiB by precision, then by "estimator/library/steps"."""
    cell, _, injections = given
    for tensor in (*cell.parameters(), *injections):
        tensor.grad = torch.zeros_like(tensor)
    found: dict[str, dict[str, float]] = {"float32": {}, "bfloat16": {}}
    for precision, entries in found.items():
        for steps in (STEPS, MANY):
            for estimator, libraries in programs(steps).items():
                for library, program in libraries.items():
                    if library == "deqgen" or steps == STEPS:
                        run = partial(backward, program, given, precision == "bfloat16")
                        entries[f"{estimator}/{library}/{steps}"] = peak_memory(run) / 2**20
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(peak_memories(problem(BATCH))))
