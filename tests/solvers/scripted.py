"""A stub in place of a method.

f maps everything to 0, so the residual of a point is its own norm and a script of proposals is a
script of residuals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqgen_solvers import Solution, Tolerance, solve

NAN, INF = float("nan"), float("inf")
TOL = Tolerance(atol=0.1, rtol=0.0)


@dataclass(frozen=True)
class Scripted:
    """Proposes the rows of a script, one a step; remembers what it was given."""

    script: list[list[float]]
    given: list[Tensor]

    def init(self, z0: Tensor) -> tuple[int, Tensor]:
        return 0, torch.arange(len(z0))

    def step(
        self, f: object, z: Tensor, fz: Tensor, state: tuple[int, Tensor]
    ) -> tuple[Tensor, tuple[int, Tensor]]:
        at, rows = state
        assert len(rows) == len(z) == len(fz)  # the state is gathered with the iterates
        self.given.append(z)
        column = torch.tensor(self.script[at], dtype=z.dtype)[rows].unsqueeze(1)
        return column, (at + 1, rows)


def zero(z: Tensor) -> Tensor:
    return torch.where(z.isfinite(), 0.0, z)


def follow(*script: list[float], **settings: object) -> Solution[Tensor]:
    """Start at the first row of the script and follow the others, one column a sample."""
    z0 = torch.tensor(script[0], dtype=torch.float64).unsqueeze(1)
    stub = Scripted([list(row) for row in script[1:]], [])
    settings = {"tol": TOL, "max_steps": len(script) - 1, **settings}
    return solve(zero, z0, solver=stub, **settings)
