"""Fixed-point problems with known answers: does my method pass?

1. ``make_problem(name)`` builds a `Problem`; ``available_problems()`` lists the names.
2. ``problem.run(solver)`` solves it; ``problem.solved_by(z)`` judges any z, whoever found it.
3. ``problem.failures`` names the methods that must fail on it, and says why.
4. Constructors take sizes, seeds and dtypes: ``with_spectrum(-0.9, 0.9, size=100, seed=7)``.
5. Affine maps are in ``affine.py``, classics in ``nonlinear.py``, ``equations.py``, ``cells.py``.

A method of your own against all of them::

    from deqgen_solvers import problems

    for name in problems.available_problems():
        problem = problems.make_problem(name)
        solved = problem.solved_by(problem.run(MySolver()).z)
        print(f"{name:25}", solved.tolist(), dict(problem.failures))
"""

from __future__ import annotations

from deqgen_solvers.problems.affine import (
    affine,
    affine_map,
    complex_contraction,
    diagonal,
    poisson,
    rotation,
    with_spectrum,
)
from deqgen_solvers.problems.cells import attention_cell, tanh_rnn, transformer_cell
from deqgen_solvers.problems.equations import (
    boundary_value,
    bratu,
    bratu_square,
    chandrasekhar,
)
from deqgen_solvers.problems.nonlinear import (
    constant,
    cosine,
    cubic,
    pipes,
    powell,
    tridiagonal,
    trigonometric,
    two_curves,
)
from deqgen_solvers.problems.problem import Problem
from deqgen_solvers.problems.table import available_problems, make_problem

__all__ = [
    "Problem",
    "affine",
    "affine_map",
    "attention_cell",
    "available_problems",
    "boundary_value",
    "bratu",
    "bratu_square",
    "chandrasekhar",
    "complex_contraction",
    "constant",
    "cosine",
    "cubic",
    "diagonal",
    "make_problem",
    "pipes",
    "poisson",
    "powell",
    "rotation",
    "tanh_rnn",
    "transformer_cell",
    "tridiagonal",
    "trigonometric",
    "two_curves",
    "with_spectrum",
]
