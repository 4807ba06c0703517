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

from deqgen_solvers import Anderson, Broyden, Picard, Solver, Tolerance, solve

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
    """Measure every method at every shape, each beside torchdeq's and nothing else."""
    rows = []
    for batch, size in SHAPES:
        for their_solver, ours in METHODS.values():
            for name, solver in ours.items():
                cost = step_cost(batch, size, their_solver, solver, rounds)
                rows.append({"B": batch, "D": size, "method": name, **cost})
    return rows


def step_cost(
    batch: int, size: int, their_solver: Callable[..., Any], solver: Solver[Any], rounds: int
) -> dict[str, float]:
    """Microseconds a step beyond f of two solvers, their ratio, and those of f."""
    f, z0 = problem(batch, size)
    times = interleaved(
        {
            "f": lambda: evaluate(f, z0),
            "torchdeq": lambda: their_solver(f, z0, max_iter=STEPS, tol=0.0),
            "deqgen": lambda: solve(f, z0, solver=solver, tol=NEVER, max_steps=STEPS),
        },
        rounds,
    )
    # A solve of 40 steps evaluates f 40 or 41 times in both libraries.
    each = {name: 1e6 * time / STEPS for name, time in times.items()}
    theirs, ours = each["torchdeq"] - each["f"], each["deqgen"] - each["f"]
    return {"torchdeq": theirs, "deqgen": ours, "ratio": theirs / ours, "f": each["f"]}
