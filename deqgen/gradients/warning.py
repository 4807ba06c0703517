"""Say so when a solve that a gradient rests on has missed its tolerance."""

from __future__ import annotations

import warnings
from typing import Any

from deqgen.gradients.protocol import EquilibriumWarning
from deqgen_solvers import Solution, Tolerance


def warn_unless_converged(
    which: str, solution: Solution[Any], tol: Tolerance | None, effect: str
) -> None:
    """Warn if a sample has missed ``tol``; a bare budget, or a tolerance of zero, cannot be missed.

    Args:
        which: "forward" or "backward".
        solution: how the solve went.
        tol: what it should have reached.
        effect: what that means for the gradient.
    """
    if tol is None or tol.atol == tol.rtol == 0 or bool(solution.converged.all()):
        return
    said = solution.explain().replace("\n", " ")
    warnings.warn(
        f"the {which} solve missed its tolerance, so {effect}. {said} Likely causes: (a) the cell "
        "is no contraction, (b) too few steps, (c) a tolerance below what the dtype can reach, "
        "autocast included. Try more max_steps, a looser tol, or Unrolled(steps), which "
        "differentiates the iterations that were done.",
        EquilibriumWarning,
        stacklevel=3,
    )
