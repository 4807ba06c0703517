"""One table of methods, one table of problems. Expected failures are rows of data, not skips.

A new method gets a row in METHODS and is tested by everything in this folder. The problems are the
public ones; which methods fail on them is said there for users, and here sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from deqgen_solvers import GMRES, Anderson, AndersonTypeI, Broyden, NewtonKrylov, Picard, Solver
from deqgen_solvers.problems import Problem, available_problems, make_problem

METHODS: dict[str, Solver[Any]] = {
    "picard": Picard(),
    "picard-damped": Picard(damping=0.5),
    "anderson": Anderson(),
    "anderson-long": Anderson(memory=20),
    "anderson-damped": Anderson(damping=0.7),
    "anderson-type-1": AndersonTypeI(),
    "broyden": Broyden(),
    "broyden-short": Broyden(memory=3),
    "broyden-search": Broyden(line_search=True),
    "gmres": GMRES(),
    "gmres-5": GMRES(restart=5),
    "newton_krylov": NewtonKrylov(),
}

CALLS_F = {"broyden-search", "newton_krylov"}
"""Methods that evaluate f inside a step. All others spend one evaluation a step and one before."""

QUICK = {"newton_krylov"}
"""Methods that end within a few steps: what is watched on the way is watched in the first two."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    name: partial(make_problem, name) for name in available_problems()
}

ALL = (0, 1, 2)

FAILURES: dict[tuple[str, str], tuple[int, ...]] = {
    # Too slow: 0.995 a step, 1800 steps.
    ("picard-damped", "contraction 0.99"): ALL,
    ("picard", "contraction 0.999"): ALL,
    ("picard-damped", "contraction 0.999"): ALL,
    # An eigenvalue left of -1 needs damping below 2 / 3.5 = 0.57 ...
    ("picard", "expansion to the left"): ALL,
    # ... and right of 1 none helps.
    ("picard", "expansion to the right"): ALL,
    ("picard-damped", "expansion to the right"): ALL,
    ("picard", "poisson"): ALL,
    ("picard", "cubic"): ALL,
    ("picard", "tridiagonal"): ALL,
    # Radius above 1; damping by 1/2 helps where the angles are wide.
    ("picard", "rotation 1.1"): ALL,
    ("picard-damped", "rotation 1.1"): (0,),
    # Eigenvalues 1 +- sqrt(3) i; damping by 1/2 takes them to modulus 1 with equal pipes.
    ("picard", "pipes"): ALL,
    ("picard-damped", "pipes"): (0, 1),
    # Three complex pairs, outside the unit circle, ask for more than three directions.
    ("broyden-short", "rotation 1.1"): (0,),
    ("anderson-type-1", "rotation 1.1"): (0,),
    # Five vectors do not see a spectrum that wide; Anderson's window slides, this one is cleared.
    ("gmres-5", "contraction 0.999"): (1, 2),
    # The cell repels; it cycles.
    ("picard", "attention"): ALL,
    ("picard-damped", "attention"): (0,),
    # The first step is of length 1e4, and none of these limits it; Newton's is another.
    **{(method, "powell"): ALL for method in METHODS if method != "newton_krylov"},
}
"""(method, problem) -> the samples that must fail. All others must converge."""
