"""GMRES does what a dense reference does, from images of f alone.

Letters: N unknowns of one sample, A the matrix of an affine map z -> A z + b.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import GMRES, Anderson, Tolerance, make_solver, solve
from deqgen_solvers.methods.hessenberg import Hessenberg
from tests.solvers.test_methods import NEVER, affine, gmres, iterates, seeds

DOUBLES = [torch.float64, torch.complex128]
TIGHT = Tolerance(atol=0.0, rtol=1e-10)


@pytest.mark.parametrize("dtype", DOUBLES)
@settings(max_examples=15)
@given(n=st.integers(2, 8), seed=seeds)
def test_proposals_are_images_of_the_dense_minimisers(
    dtype: torch.dtype, n: int, seed: int
) -> None:
    a, b = affine(n, seed, dtype=dtype)
    seen = iterates(GMRES(), lambda z: z @ a.T + b, b * 0, n)
    for k in range(1, n):
        point = gmres(a, b, b * 0, k)
        expected = a @ point + b
        # Where GMRES stagnates the proposal has a part of the newest vector beside.
        residual = (a @ point + b - point).norm()
        before = gmres(a, b, b * 0, k - 1) if k > 1 else b * 0
        if residual < 0.95 * (a @ before + b - before).norm():
            assert (seen[k + 1] - expected).norm() <= 1e-7 * expected.norm() + 1e-6 * residual


@pytest.mark.parametrize("dtype", DOUBLES)
def test_minimisers_are_those_of_scipy(dtype: torch.dtype) -> None:
    a, b = affine(9, 3, norm=1.4, dtype=dtype)
    matrix = np.eye(9) - a.numpy()
    z, f, method = b[None] * 0, lambda z: z @ a.T + b, GMRES()
    state = method.init(z)
    for k in range(9):
        z, state = method.step(f, z, f(z), state)
        ours = state.minimiser()[0]
        theirs = scipy.sparse.linalg.gmres(matrix, b.numpy(), rtol=0, restart=max(k, 1), maxiter=1)
        if k:
            assert np.linalg.norm(ours.numpy() - theirs[0]) <= 1e-8 * np.linalg.norm(theirs[0])
        residual = (f(ours) - ours).norm()
        assert torch.allclose(state.least[0], residual, rtol=1e-7)


@pytest.mark.parametrize("dtype", DOUBLES)
@settings(max_examples=20)
@given(n=st.integers(1, 8), seed=seeds, norm=st.sampled_from([0.5, 0.9, 3.0]))
def test_it_ends_after_n_products_and_the_answer(
    dtype: torch.dtype, n: int, seed: int, norm: float
) -> None:
    a, b = affine(n, seed, norm, dtype)
    eye = torch.eye(n, dtype=dtype)
    tol = Tolerance(atol=0.0, rtol=1e-12 * float(torch.linalg.cond(eye - a)) + 1e-10)
    solution = solve(lambda z: z @ a.T + b, b[None] * 0, solver="gmres", tol=tol)
    assert solution.converged.all() and solution.nfe <= n + 2


def test_full_memory_anderson_takes_the_same_steps() -> None:
    a, b = affine(10, 0)
    f = lambda z: z @ a.T + b  # noqa: E731
    ours = torch.stack(iterates(GMRES(), f, b * 0, 9))
    anderson = torch.stack(iterates(Anderson(memory=12), f, b * 0, 9))
    assert torch.allclose(ours, anderson, rtol=0, atol=1e-8 * float(ours.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stagnation_ends_in_time(dtype: torch.dtype) -> None:
    """I - A a cyclic shift: the residual stays at 1 until the last step. Anderson loses steps."""
    n = 6
    shift = torch.eye(n, dtype=dtype).roll(1, 0)
    a = torch.eye(n, dtype=dtype) - shift
    b = torch.eye(n, dtype=dtype)[0]
    f = lambda z: z @ a.T + b  # noqa: E731
    tol = Tolerance(atol=0.0, rtol=20 * torch.finfo(dtype).eps)
    solution = solve(f, b[None] * 0, solver=GMRES(), tol=tol, max_steps=n + 1)
    assert solution.converged.all()
    anderson = solve(f, b[None] * 0, solver=Anderson(memory=n + 1), tol=tol)
    assert (anderson.steps > n + 1).all()


def test_non_normal() -> None:
    """A Jordan block: radius 0.5, norm 1.5; plain iteration grows first."""
    n = 12
    a = 0.5 * torch.eye(n, dtype=torch.float64) + torch.eye(n).double().roll(1, 0).tril(-1)
    b = torch.ones(n, dtype=torch.float64)
    solution = solve(lambda z: z @ a.T + b, b[None] * 0, solver=GMRES(), tol=TIGHT, max_steps=40)
    exact = torch.linalg.solve(torch.eye(n, dtype=a.dtype) - a, b)
    assert solution.converged.all() and solution.nfe <= n + 4
    assert (solution.z[0] - exact).norm() <= 1e-8 * exact.norm()


def test_float32_near_radius_one() -> None:
    d = torch.linspace(-0.99, 0.99, 64)
    q = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    a = q @ torch.diag(d) @ q.T
    for restart, most in ((70, 50), (10, 150)):
        solution = solve(
            lambda z: z @ a + 1,
            torch.zeros(1, 64),
            solver=GMRES(restart=restart),
            tol=Tolerance(atol=0.0, rtol=1e-5),
            max_steps=most,
        )
        assert solution.converged.all(), solution.residual


def test_below_rounding_it_goes_on_from_where_it_is() -> None:
    """The model says 1e-30, f says 1e-16: the row begins anew, and nothing grows."""
    a, b = affine(5, 0)
    solution = solve(
        lambda z: z @ a.T + b, b[None] * 0, solver=GMRES(), tol=NEVER, max_steps=60, trace=True
    )
    late = solution.trace.residual[8:, 0]
    assert late.max() < 1e-14


def test_an_early_end_and_frozen_rows_touch_no_neighbour() -> None:
    """Row 0 needs one vector, row 1 is solved at the start, row 2 is singular, row 3 needs all."""
    a = torch.stack([0.5 * torch.eye(4), 0.3 * torch.eye(4), torch.eye(4), torch.zeros(4, 4)])
    a = a.double()
    a[3], b = affine(4, 1)
    start = torch.zeros(4, 4, dtype=torch.float64)
    start[1] = torch.linalg.solve(torch.eye(4, dtype=a.dtype) - a[1], b)

    def run(rows: slice) -> object:
        f = lambda z: torch.einsum("bij,bj->bi", a[rows], z) + b  # noqa: E731
        return solve(f, start[rows], solver=GMRES(restart=3), tol=TIGHT, max_steps=40)

    whole = run(slice(0, 4))
    assert whole.converged.tolist() == [True, True, False, True]
    assert whole.z.isfinite().all() and whole.steps[:2].tolist() == [2, 0]
    for i in range(4):
        alone = run(slice(i, i + 1))
        assert torch.allclose(alone.z[0], whole.z[i], rtol=1e-9)
        assert alone.steps[0] == whole.steps[i]


def test_a_row_that_begins_anew_is_right_beside_one_that_does_not() -> None:
    """Row 0 bends and begins anew in the middle of a cycle; row 1 is affine."""
    a, b = affine(6, 2)

    def f(z: Tensor) -> Tensor:
        image = z @ a.T + b
        return torch.stack((image[0].sin(), image[1])) if len(z) == 2 else image

    tol = Tolerance(atol=0.0, rtol=1e-9)
    both = solve(f, torch.zeros(2, 6).double(), solver=GMRES(), tol=tol)
    alone = solve(f, torch.zeros(1, 6).double(), solver=GMRES(), tol=tol)
    assert both.converged.all() and both.steps[0] > both.steps[1] == alone.steps[0]
    assert torch.allclose(both.z[1], alone.z[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_a_map_that_is_not_affine_is_reported_honestly(size: float) -> None:
    a, b = affine(8, 4)
    f = lambda z: torch.tanh(size * z @ a.T + b)  # noqa: E731
    solution = solve(f, b[None] * 0, solver=GMRES(restart=8), tol=TIGHT, max_steps=60)
    true = (f(solution.z) - solution.z).norm(dim=1)
    assert torch.allclose(solution.residual, true, rtol=1e-6, atol=1e-15)
    within = true <= 1.01e-10 * f(solution.z).norm(dim=1)
    assert torch.equal(within, solution.converged)


def test_small_problem_is_a_dense_least_squares_problem() -> None:
    g = torch.Generator().manual_seed(0)
    columns = 4
    h = torch.randn(2, columns + 1, columns, generator=g, dtype=torch.complex128).triu(-1)
    h[1, 3, 2] = 0  # a breakdown in the middle
    norm = torch.tensor([2.0, 3.0], dtype=torch.float64)
    problem = Hessenberg.begin(norm, 0, h.dtype)
    for j in range(columns):
        problem = problem.extend(h[:, : j + 2, j])
    right = torch.zeros(2, columns + 1, dtype=h.dtype)
    right[:, 0] = norm.to(h.dtype)
    expected = torch.linalg.lstsq(h, right.unsqueeze(2)).solution.squeeze(2)
    y = problem.solve(1e-16)
    assert torch.allclose(y, expected)
    assert torch.allclose(problem.residual(y), right - (h @ y.unsqueeze(2)).squeeze(2))
    eye = torch.eye(columns + 1, dtype=h.dtype)
    assert torch.allclose(problem.rotation @ problem.rotation.mH, eye.expand(2, -1, -1))


@pytest.mark.parametrize(
    ("error", "pattern", "options"),
    [
        (ValueError, "GMRES: restart must be at least 1, got 0", {"restart": 0}),
        (TypeError, "GMRES: restart must be a whole number, got 2.5", {"restart": 2.5}),
        (TypeError, "GMRES: restart must be a whole number, got True", {"restart": True}),
        (TypeError, "no option 'memory'", {"memory": 5}),
    ],
)
def test_mistakes(error: type[Exception], pattern: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=pattern):
        make_solver("gmres", **options)


@pytest.mark.slow  # most of a minute on a busy machine
def test_fixed_budget_compiles_whole() -> None:
    d = torch.linspace(-0.9, 0.9, 8)
    run = lambda z: solve(lambda z: d * z + 1, z, solver="gmres", tol=None, max_steps=4).z  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(torch.zeros(2, 8)), run(torch.zeros(2, 8)))
