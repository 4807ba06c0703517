"""What a step costs beyond f, in microseconds: float32, 40 steps, nothing converges.

Letters: B samples, D unknowns of one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchdeq.solver as theirs
from timing import interleaved
from torch import Tensor

from deqgen_solvers import Anderson, Broyden, Picard, Tolerance, solve

SHAPES = ((1, 64), (64, 1024), (64, 65536))
STEPS = 40
NEVER = Tolerance(atol=0.0, rtol=0.0)

# The same window for both: their m counts iterates as our memory does. Their Broyden keeps all
# pairs (with a limited memory it gives NaN), so ours is shown with as many, and with its default.
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "picard": (theirs.fixed_point_iter, {"picard": Picard()}),
    "anderson": (theirs.anderson_solver, {"anderson": Anderson(memory=6)}),
    "broyden": (
        theirs.broyden_solver,
        {"broyden": Broyden(), "broyden, all pairs": Broyden(memory=STEPS)},
    ),
}


def problem(batch: int, size: int) -> tuple[Callable[..., Tensor], Tensor]:
    """An affine map of one operation, with eigenvalues from -0.99 to 0.99, and its start."""
    slope = torch.linspace(-0.99, 0.99, size)
    shift = torch.randn(batch, size, generator=torch.Generator().manual_seed(0))

    def f(z: Tensor, tau: float = 1.0) -> Tensor:  # tau: torchdeq's Picard hands it to f
        return torch.addcmul(shift, slope, z)

    return f, torch.zeros(batch, size)


def evaluate(f: Callable[[Tensor], Tensor], z: Tensor) -> None:
    """Evaluate f as often as a solve does, keeping nothing: new memory for each image costs too."""
    for _ in range(STEPS):
        z = f(z)


def step_costs(rounds: int) -> list[dict[str, Any]]:
    """Measure every method at every shape."""
    rows = []
    for batch, size in SHAPES:
        f, z0 = problem(batch, size)
        for their_solver, ours in METHODS.values():
            programs: dict[str, Callable[[], object]] = {
                "f": lambda f=f, z=z0: evaluate(f, z),
                "torchdeq": lambda f=f, z=z0, s=their_solver: s(f, z, max_iter=STEPS, tol=0.0),
            }
            for name, solver in ours.items():
                programs[name] = lambda f=f, z=z0, s=solver: solve(
                    f, z, solver=s, tol=NEVER, max_steps=STEPS
                )
            times = interleaved(programs, rounds)
            # A solve of 40 steps evaluates f 40 or 41 times in both libraries.
            cost = {name: 1e6 * (times[name] - times["f"]) / STEPS for name in programs}
            rows += [
                {
                    "B": batch,
                    "D": size,
                    "method": name,
                    "torchdeq": cost["torchdeq"],
                    "deqgen": cost[name],
                    "ratio": cost["torchdeq"] / cost[name],
                    "f": 1e6 * times["f"] / STEPS,
                }
                for name in ours
            ]
    return rows
