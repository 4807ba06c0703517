"""Backtracking per sample: shorten a step until the residual falls.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

from deqgen_solvers.protocol import Function

TRIALS = 6
"""Lengths tried, 1, 1/2, ... 1/32; each takes one call of f on the whole batch."""

# Of the decrease that a linear model promises, this much is asked for (Armijo's rule).
_DECREASE = 1e-4


def backtrack(f: Function, z: Tensor, step: Tensor, level: Tensor, still: Tensor) -> Tensor:
    """Walk along ``step`` only so far as the residual of each sample falls below a level.

    A sample takes the longest of the lengths 1, 1/2, 1/4, ... for which ``||f(z) - z||`` falls
    below its level by 1e-4 times the length; if none does, the one with the least residual.

    Every trial is one call of f, and samples that are served stay where they are meanwhile. There
    are ``TRIALS`` of them, fewer where `settled` may look.

    Args:
        f: the counted function.
        z: current iterates (B, N).
        step: full steps (B, N).
        level: (B,) ||f(z) - z|| for a search that descends, more for one that may climb a little.
        still: (B,) samples that are not to be served: frozen ones, whose step nobody takes.

    Returns:
        The next iterates (B, N); a sample none of whose trials is finite gets its full step.
    """
    chosen = z + step
    least = torch.full_like(level, torch.inf)
    done = still
    for trial in range(TRIALS):
        length = 0.5**trial
        point = torch.where(done.unsqueeze(1), chosen, z + length * step)
        size = vector_norm(f(point) - point, dim=1).to(level.dtype)
        better = ~done & (size < least)
        chosen = torch.where(better.unsqueeze(1), point, chosen)
        least = torch.where(better, size, least)
        done = done | (size <= (1 - _DECREASE * length) * level)
        if settled(done):
            break
    return chosen


def settled(done: Tensor) -> bool:
    """Whether all of ``done`` (B,) is set, where a look at it waits for no device: on the CPU.

    Elsewhere, and in a compiled program, never: a loop then runs to its fixed end, its finished
    rows masked, with the same result.
    """
    looks = done.device.type == "cpu" and not torch.compiler.is_compiling()
    return looks and bool(done.all())
