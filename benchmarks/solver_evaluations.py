"""Evaluations of f until a point met the problem's tolerance, sample 0 alone; a dash is never.

The point is judged here, at every call of f and by one rule for all, so that no library's own
stopping rule or report matters. Anderson combines five iterates everywhere, with each library's own
regularisation. Broyden keeps all pairs, as torchdeq's and scipy's do, and once more our default 16.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchdeq.solver as theirs
from scipy import optimize
from torch import Tensor

from deqgen_solvers import Anderson, Broyden, Tolerance, problems, solve
from deqgen_solvers.problems import Problem

MEMORY = 5
NEVER = Tolerance(atol=0.0, rtol=0.0)

Function = Callable[[Tensor], Tensor]
Method = Callable[[Function, Tensor, int], object]


class Met(Exception):
    """The tolerance is met; there is no need to go on."""


def run_scipy(method: Callable[..., Any], **options: Any) -> Method:
    """Quasi-Newton methods of scipy, on f(z) - z from the Jacobian -I, without line search."""

    def run(f: Function, z: Tensor, steps: int) -> object:
        def defect(flat: np.ndarray) -> np.ndarray:
            point = torch.from_numpy(flat).to(z.dtype).reshape(z.shape)
            return (f(point) - point).double().flatten().numpy()

        settings = {"alpha": 1.0, "line_search": None, "maxiter": steps, "f_tol": 0.0}
        return method(defect, z.double().flatten().numpy(), **settings, **options)

    return run


METHODS: dict[str, dict[str, Method]] = {
    "anderson": {
        "torchdeq": lambda f, z, n: theirs.anderson_solver(f, z, max_iter=n, tol=0.0, m=MEMORY),
        "deqgen": lambda f, z, n: solve(
            f, z, solver=Anderson(memory=MEMORY), tol=NEVER, max_steps=n
        ),
        # M counts differences, and w0 is a ridge.
        "scipy": run_scipy(optimize.anderson, M=MEMORY - 1, w0=1e-8),
    },
    "broyden": {
        "torchdeq": lambda f, z, n: theirs.broyden_solver(f, z, max_iter=n, tol=0.0),
        "deqgen": lambda f, z, n: solve(f, z, solver=Broyden(memory=n), tol=NEVER, max_steps=n),
        "deqgen, 16": lambda f, z, n: solve(f, z, solver=Broyden(), tol=NEVER, max_steps=n),
        "scipy": run_scipy(optimize.broyden1),
    },
}


def count_evaluations(_rounds: int) -> list[dict[str, Any]]:
    """Measure every method on every problem of real numbers; a count does not vary."""
    rows = []
    for name in problems.available_problems():
        problem = problems.make_problem(name)
        if problem.z0.is_complex():
            continue  # neither torchdeq nor scipy conjugates its inner products
        row: dict[str, Any] = {"problem": name, "unknowns": problem.z0[0].numel()}
        for method, programs in METHODS.items():
            for library, program in programs.items():
                row[f"{method}, {library}"] = evaluations(program, problem)
        rows.append(row)
    return rows


def evaluations(program: Method, problem: Problem) -> int | None:
    """Calls of f up to the first point that meets the tolerance, or None."""
    args = tuple(arg[:1] for arg in problem.args)
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        image = problem.f(z, *args)
        residual, size = ((image - z).norm(), image.norm())
        if residual <= problem.tol.threshold(size, math.prod(z.shape[1:])):
            raise Met
        if calls > problem.max_steps or not residual.isfinite():
            raise FloatingPointError
        return image

    # Whatever a method says or raises when it fails, it has not met the tolerance.
    failures = (
        FloatingPointError,
        ArithmeticError,
        RuntimeError,
        ValueError,
        optimize.NoConvergence,
    )
    with warnings.catch_warnings(), np.errstate(all="ignore"), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with contextlib.suppress(*failures):
                program(f, problem.z0[:1].clone(), problem.max_steps)
        except Met:
            return calls
    return None
