"""Anderson beside scipy's and beside a dense QR least squares: the same work, problem by problem.

Letters: N unknowns of one sample, K differences kept.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from deqgen_solvers import Anderson, Tolerance, solve
from deqgen_solvers.problems import Problem, available_problems, make_problem

LIMIT = 400
DOUBLE = (torch.float64, torch.complex128)
# On "powell" all of them fail.
NAMES = [n for n in available_problems() if make_problem(n).z0.dtype in DOUBLE and n != "powell"]


class Counted:
    """f of one sample as a vector function; knows at which evaluation the tolerance was met."""

    def __init__(self, problem: Problem, sample: int, tol: Tolerance) -> None:
        self.problem, self.row, self.tol = problem, slice(sample, sample + 1), tol
        self.args = tuple(arg[self.row] for arg in problem.args)
        self.start = problem.z0[sample].flatten()
        self.calls, self.met = 0, False

    def __call__(self, z: Tensor) -> Tensor:
        state = z.reshape(self.problem.z0[self.row].shape)
        fz = self.problem.f(state, *self.args).flatten()
        self.calls += 1
        self.met = bool((fz - z).norm() <= self.tol.threshold(fz.norm(), len(z)))
        return fz


class Arrived(Exception):
    pass


def by_scipy(f: Counted, differences: int, damping: float) -> int:
    """scipy's extended Anderson mixing, set up to be the same method.

    Its F is f(z) - z; ``M`` counts differences, ``alpha`` is the damping, ``w0`` a ridge relative
    to each difference, which we do not want; and it searches along the step unless told not to.
    """

    def residual(x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x)
        fz = f(z)
        if f.met:
            raise Arrived
        return (fz - z).numpy()

    settings = {"M": differences, "alpha": damping, "w0": 0.0, "line_search": None}
    with pytest.raises(Arrived):
        optimize.anderson(residual, f.start.numpy(), f_tol=0.0, maxiter=LIMIT, **settings)
    return f.calls


def by_qr(f: Counted, differences: int, damping: float) -> int:
    """Walker and Ni's formula with a fresh pivoted QR decomposition of the differences a step."""
    z, zs, rs = f.start, [], []
    while f.calls < LIMIT:
        r = f(z) - z
        if f.met:
            return f.calls
        zs, rs = [*zs, z][-differences - 1 :], [*rs, r][-differences - 1 :]
        z = z + damping * r
        if len(rs) > 1:
            dr = torch.stack(rs, dim=1).diff(dim=1)  # (N, K)
            du = torch.stack(zs, dim=1).diff(dim=1) + damping * dr  # (N, K)
            length = dr.norm(dim=0)
            gamma = torch.linalg.lstsq(dr / length, r.unsqueeze(1), driver="gelsy").solution
            z = z - (du / length) @ gamma.squeeze(1)
    raise AssertionError("the reference did not converge")


# scipy does not scale its normal equations, whose columns differ by orders of magnitude at the end.
@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_evaluations_to_1e_10_within_one_of_scipy_and_qr(name: str, damping: float) -> None:
    problem = make_problem(name)
    # As many differences as unknowns are nearly dependent, and rounding decides what comes out.
    differences = max(1, min(5, problem.z0[0].numel() - 1))
    absolute = problem.tol.rtol == 0  # the fixed point is 0
    tol = Tolerance(atol=1e-10 * absolute, rtol=1e-10 * (not absolute))
    solver = Anderson(memory=differences + 1, damping=damping)
    for sample in range(len(problem.z0)):
        ours = Counted(problem, sample, tol)
        z0 = problem.z0[ours.row]
        solution = solve(
            lambda z, f: f(z[0])[None], z0.flatten(1), (ours,), solver, tol=tol, max_steps=LIMIT
        )
        assert solution.converged.all() and solution.nfe == ours.calls
        references = [
            by(Counted(problem, sample, tol), differences, damping) for by in (by_scipy, by_qr)
        ]
        assert all(abs(ours.calls - reference) <= 1 for reference in references), (
            sample,
            ours.calls,
            references,
        )
