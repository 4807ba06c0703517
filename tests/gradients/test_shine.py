"""The shared inverse estimate: what it is, how good it is, whom it serves.

Letters: N unknowns.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen.gradients import JFB, SHINE, Forward, GradientEstimator, Implicit
from deqgen_solvers import Broyden, Picard, Tolerance
from tests.gradients.cells import EXACT, TIGHT, Tanh, gradients, inputs, loss, matrix

LEARNT = Forward(solver=Broyden(memory=80), tol=TIGHT, max_steps=80)


def slopes(
    estimator: GradientEstimator, cell: Tanh, z0: Tensor, x: Tensor, forward: Forward = LEARNT
) -> Tensor:
    z = estimator.differentiate(cell, z0, (x,), forward).z
    return torch.cat([g.flatten() for g in gradients(loss(z), x, cell.weight)])


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), norm=st.floats(0.3, 0.9))
def test_between_jfb_and_the_exact_gradient(seed: int, norm: float) -> None:
    """Refined k times, the error falls at the rate of a chord iteration with a good inverse."""
    cell = Tanh(10, norm, seed)
    z0, x = inputs(3, 10, seed + 1)
    exact = slopes(Implicit(tol=TIGHT), cell, z0, x, EXACT)
    errors = [(slopes(SHINE(k), cell, z0, x) - exact).norm() / exact.norm() for k in (0, 2, 4, 30)]
    jfb = (slopes(JFB(), cell, z0, x, EXACT) - exact).norm() / exact.norm()
    assert errors[0] < jfb
    assert errors[2] < errors[1] < errors[0]
    assert errors[3] < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_exact_where_broyden_knows_the_whole_jacobian(dtype: torch.dtype) -> None:
    """On an affine map of N unknowns the matrix is exact after N steps in general position."""
    n = 4
    a = matrix(n, 0.9, 1).to(dtype)
    if dtype.is_complex:
        a = a + 0.3j * matrix(n, 0.9, 2)
    b = torch.randn(1, n, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    u = torch.randn(1, n, generator=torch.Generator().manual_seed(4)).to(dtype)
    forward = Forward(Broyden(memory=60), Tolerance(atol=0.0, rtol=1e-14), 60)
    found = []
    for estimator in (SHINE(), SHINE(refine=1)):
        z = estimator.differentiate(lambda z, b: z @ a.T + b, b.detach() * 0, (b,), forward).z
        found.append(torch.autograd.grad(z, b, u)[0])
    exact = torch.linalg.solve(torch.eye(n) - a.mH, u[0])
    errors = [float((v[0] - exact).norm() / exact.norm()) for v in found]
    assert errors[0] < 0.5 and errors[1] < 0.2 * errors[0]


def test_a_sample_that_ends_early_keeps_what_it_learnt() -> None:
    cell = Tanh(6, 0.9)
    z0, x = inputs(2, 6)
    star = EXACT(cell, z0, (x,)).fz
    start = torch.cat((star[:1] + 1e-4, z0[1:]))  # the first sample is done before the other
    one = x.detach()[:1].requires_grad_()
    # Nearer, the differences that the estimate is made of would be rounding errors.
    forward = Forward(LEARNT.solver, Tolerance(atol=0.0, rtol=1e-6), LEARNT.max_steps)
    both = SHINE().differentiate(cell, start, (x,), forward)
    assert both.solution.steps[0] < both.solution.steps[1]
    together = gradients(loss(both.z[:1]), x)[0][:1]
    alone = gradients(loss(SHINE().differentiate(cell, start[:1], (one,), forward).z), one)[0]
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_nothing_learnt_is_jfb() -> None:
    cell, (z0, x) = Tanh(), inputs()
    star = EXACT(cell, z0, (x,)).fz
    at_rest = slopes(SHINE(), cell, star, x)
    torch.testing.assert_close(at_rest, slopes(JFB(), cell, star, x, EXACT), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (Forward(solver="anderson"), r"Anderson\(.*learns none.*Broyden\(memory=50\)"),
        (Forward(solver=Picard()), "learns none"),
        (Forward(solver=Broyden(memory=5), max_steps=9), r"forgets.*Broyden\(memory=9\)"),
        (Forward(solver=Broyden(memory=50), compact=True), "compact=True"),
    ],
)
def test_solvers_that_it_cannot_work_with(forward: Forward, message: str) -> None:
    cell, (z0, x) = Tanh(), inputs()
    with pytest.raises(ValueError, match=message):
        SHINE().differentiate(cell, z0, (x,), forward)


def test_a_bad_option() -> None:
    with pytest.raises(ValueError, match="refine must be at least 0"):
        SHINE(refine=-1)
