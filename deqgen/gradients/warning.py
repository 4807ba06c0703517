"""Say so when a solve that a gradient rests on has missed its tolerance.

Python shows a warning once for each place and text. So that a training is not flooded, a text here
holds no number that changes from batch to batch, and its place is the caller's line, not ours.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from deqgen.gradients.protocol import EquilibriumWarning
from deqgen_solvers import Solution, Status, Tolerance

_OURS = ("deqgen", "deqgen_solvers", "torch")


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
    codes = solution.status.tolist()
    why = " ".join(str(s) for s in Status if s in codes and s is not Status.CONVERGED)
    warn_caller(
        f"the {which} solve missed its tolerance in some samples, so {effect}. {why} Likely "
        "causes: (a) the cell is no contraction, (b) too few steps, (c) a tolerance below what the "
        "dtype can reach, autocast included. Try more max_steps, a looser tol, or "
        "Unrolled(steps), which differentiates the iterations that were done. How many samples: "
        f"{_COUNTED[which]}."
    )


_COUNTED = {
    "forward": "equilibrium.solution.explain()",
    "backward": "Implicit(callback=lambda solution: print(solution.explain()))",
}


def warn_caller(text: str) -> None:
    """Warn at the innermost line that is neither torch's nor ours.

    A backward pass on a GPU runs in a thread of autograd's, where nobody is the caller; the
    warning then stands without a line of theirs.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, EquilibriumWarning, stacklevel=level)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS
