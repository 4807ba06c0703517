"""Fixed points z = f(z) of batches of independent problems. Needs torch and nothing else.

1. A solver (``protocol.py``, ``methods/``) is an update rule: from z and f(z) to the next z.
2. ``solve`` (``driver.py``) is the only loop: it evaluates f, counts, freezes, keeps the best.
3. ``Tolerance`` (``stopping.py``) says when a sample is done; ``None`` means a fixed budget.
4. ``Solution`` (``solution.py``) says per sample what was reached, and in a sentence why it ended.
5. Solvers see (B, N); ``state.py`` turns any state into that, ``registry.py`` names into solvers.
"""

from __future__ import annotations

from deqgen_solvers import bridges, diagnostics, problems
from deqgen_solvers.driver import solve
from deqgen_solvers.errors import (
    ConvergenceError,
    ForwardModeError,
    MissingPackageError,
    OptionError,
    OptionTypeError,
    SolverError,
    StateError,
    StateTypeError,
    UnknownSolverError,
)
from deqgen_solvers.methods import GMRES, Anderson, AndersonTypeI, Broyden, NewtonKrylov, Picard
from deqgen_solvers.protocol import Solver
from deqgen_solvers.registry import available_solvers, make_solver, register_solver
from deqgen_solvers.solution import Progress, Solution, Status, Trace
from deqgen_solvers.stopping import Tolerance

__all__ = [
    "GMRES",
    "Anderson",
    "AndersonTypeI",
    "Broyden",
    "ConvergenceError",
    "ForwardModeError",
    "MissingPackageError",
    "NewtonKrylov",
    "OptionError",
    "OptionTypeError",
    "Picard",
    "Progress",
    "Solution",
    "Solver",
    "SolverError",
    "StateError",
    "StateTypeError",
    "Status",
    "Tolerance",
    "Trace",
    "UnknownSolverError",
    "available_solvers",
    "bridges",
    "diagnostics",
    "make_solver",
    "problems",
    "register_solver",
    "solve",
]
