"""Theorems about the methods.

Letters: N unknowns of one sample, A the matrix of an affine map z -> A z + b.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Anderson, Broyden, Picard, Solver, Tolerance, solve
from deqgen_solvers.methods.window import Pairs, solve_small, unit_pair

NEVER = Tolerance(atol=0.0, rtol=0.0)
seeds = st.integers(0, 10_000)


def affine(n: int, seed: int, norm: float = 0.8, dtype: torch.dtype = torch.float64):
    """A of the given spectral norm, so that (I - A) is positive and GMRES cannot stagnate."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=g, dtype=dtype)
    b = torch.randn(n, generator=g, dtype=dtype)
    return norm * a / torch.linalg.matrix_norm(a, ord=2), b


def iterates(solver: Solver, f: object, z0: Tensor, steps: int) -> list[Tensor]:
    """z_0 ... z_steps of the first sample, fewer if the method arrives."""
    seen: list[Tensor] = []
    watch = lambda p: seen.append(p.z[0].clone()) if p.running[0] else None  # noqa: E731
    solve(f, z0[None], solver=solver, tol=NEVER, max_steps=steps, callback=watch)
    return seen


def krylov(a: Tensor, r: Tensor, steps: int) -> Tensor:
    """An orthonormal basis of span(r, A r, ..., A^(steps-1) r), in columns."""
    columns: list[Tensor] = []
    v = r
    for _ in range(steps):
        columns.append(v / v.norm())
        v = a @ columns[-1]
    return torch.linalg.qr(torch.stack(columns, 1))[0]


def gmres(a: Tensor, b: Tensor, z0: Tensor, steps: int) -> Tensor:
    """The point of least residual in z0 + span(r, A r, ..., A^(steps-1) r), by dense QR."""
    r = a @ z0 + b - z0
    basis = krylov(a, r, steps)
    eye = torch.eye(len(b), dtype=a.dtype)
    weights = torch.linalg.lstsq((eye - a) @ basis, r.unsqueeze(1)).solution
    return z0 + (basis @ weights).squeeze(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("damping", [1.0, 0.6])
@settings(max_examples=25)
@given(n=st.integers(3, 8), seed=seeds)
def test_full_memory_anderson_is_gmres(
    dtype: torch.dtype, damping: float, n: int, seed: int
) -> None:
    """Walker and Ni, theorem 2.2: z_(k+1) is one step of the map from the GMRES point."""
    a, b = affine(n, seed, dtype=dtype)
    z0 = torch.zeros_like(b)
    solver = Anderson(memory=n + 1, damping=damping)
    seen = iterates(solver, lambda z: z @ a.T + b, z0, n)
    for k in range(1, n):
        point = gmres(a, b, z0, k)
        expected = point + damping * (a @ point + b - point)
        error = (seen[k + 1] - expected).norm() / expected.norm()
        assert error < 1e-6, (k, error)


@settings(max_examples=25)
@given(n=st.integers(1, 8), seed=seeds)
def test_full_memory_anderson_ends_after_n_plus_one_steps(n: int, seed: int) -> None:
    a, b = affine(n, seed)
    tol = Tolerance(atol=0.0, rtol=1e-8)
    solution = solve(lambda z: z @ a.T + b, b[None] * 0, solver=Anderson(memory=n + 1), tol=tol)
    assert solution.converged.all() and solution.steps.item() <= n + 1


@pytest.mark.parametrize("damping", [1.0, 0.5])
@given(seed=seeds)
def test_anderson_with_memory_one_is_picard(damping: float, seed: int) -> None:
    a, b = affine(5, seed)
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    one = iterates(Anderson(memory=1, damping=damping), f, b, 6)
    plain = iterates(Picard(damping=damping), f, b, 6)
    assert torch.equal(torch.stack(one), torch.stack(plain))


@given(seed=seeds)
def test_anderson_with_memory_two_minimises_over_a_line(seed: int) -> None:
    a, b = affine(4, seed)
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    seen = iterates(Anderson(memory=2), f, b, 5)
    for k in range(1, 5):
        old, new = seen[k - 1], seen[k]
        r_old, r_new = f(old) - old, f(new) - new
        theta = (r_new @ (r_new - r_old)) / (r_new - r_old).square().sum()
        expected = (1 - theta) * f(new) + theta * f(old)
        assert torch.allclose(seen[k + 1], expected, rtol=1e-7, atol=1e-12)


def test_anderson_needs_no_more_evaluations_than_exact_least_squares() -> None:
    # 88 is what scipy's Anderson and a dense QR reference need with five differences.
    d = torch.linspace(-0.9, 0.9, 64, dtype=torch.float64)
    tol = Tolerance(atol=0.0, rtol=1e-10)
    solution = solve(
        lambda z: d * z + 1, d[None] * 0, solver=Anderson(memory=6), tol=tol, max_steps=200
    )
    assert solution.converged.all() and abs(solution.nfe - 88) <= 1


def dense_broyden(f: object, z0: Tensor, steps: int, memory: int) -> list[Tensor]:
    """The rank-one formula applied to the last ``memory`` pairs, with full matrices."""
    z, seen = z0, [z0]
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        g = f(z) - z
        b = -torch.eye(len(z), dtype=z.dtype)
        for s, y in pairs[-memory:]:
            b = b + torch.outer(y - b @ s, s.conj()) / s.abs().square().sum()
        z_next = z - torch.linalg.solve(b, g)
        pairs.append((z_next - z, f(z_next) - z_next - g))
        z = z_next
        seen.append(z)
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("memory", [1, 2, 3, 20])
@settings(max_examples=15)
@given(seed=seeds)
def test_broyden_is_the_dense_rank_one_formula(memory: int, dtype: torch.dtype, seed: int) -> None:
    a, b = affine(8, seed, dtype=dtype)
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    seen = torch.stack(iterates(Broyden(memory=memory), f, b, 7))
    expected = torch.stack(dense_broyden(f, b, 7, memory))
    assert (seen - expected).norm() <= 1e-7 * expected.norm()


@settings(max_examples=25)
@given(seed=seeds, steps=st.integers(2, 9))
def test_broyden_secant_condition(seed: int, steps: int) -> None:
    """The matrix that the State stands for maps the newest step to the newest change."""
    a, b = affine(6, seed)
    f = lambda z: torch.tanh(z @ a.T + b)  # noqa: E731
    solver = Broyden(memory=12)
    seen = [b[None]]
    state = solver.init(seen[0])
    for _ in range(steps):
        z_next, state = solver.step(f, seen[-1], f(seen[-1]), state)
        seen.append(z_next)
    # B = -I + D N^-1 S^T, columns in order of age; the last slot does not hold a pair yet.
    s, d = state.pairs.first[0, : steps - 1].T, state.pairs.second[0, : steps - 1].T
    matrix = -torch.eye(6, dtype=s.dtype) + d @ torch.linalg.solve((s.T @ s).triu(), s.T)
    g = [(f(z) - z)[0] for z in seen]
    newest, change = (seen[-2] - seen[-3])[0], g[-2] - g[-3]
    assert torch.allclose(matrix @ newest, change, rtol=0, atol=1e-10 * float(change.norm()))
    taken = (seen[-1] - seen[-2])[0]
    assert torch.allclose(matrix @ taken, -g[-2], rtol=0, atol=1e-8 * float(g[-2].norm()))


@given(start=st.floats(-3, 3), shift=st.floats(0.1, 2))
def test_broyden_with_one_unknown_is_the_secant_method(start: float, shift: float) -> None:
    f = lambda z: torch.cos(z + shift)  # noqa: E731
    seen = iterates(Broyden(), f, torch.tensor([start], dtype=torch.float64), 5)
    for old, new, then in zip(seen, seen[1:], seen[2:], strict=False):
        g_old, g_new = f(old) - old, f(new) - new
        if abs(g_new) > 1e-6:  # nearer, the quotient is rounding
            expected = new - g_new * (new - old) / (g_new - g_old)
            assert torch.allclose(then, expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=40)
@given(n=st.integers(1, 5), seed=seeds)
def test_broyden_ends_on_affine_maps_within_2n_plus_1_evaluations(n: int, seed: int) -> None:
    """Gay 1979. No contraction needed: the norm of A is 1.5."""
    a, b = affine(n, seed, norm=1.5)
    eye = torch.eye(n, dtype=a.dtype)
    assume(torch.linalg.cond(eye - a) < 50)  # beyond, in exact arithmetic only
    tol = Tolerance(atol=0.0, rtol=1e-6)
    solver = Broyden(memory=2 * n)
    solution = solve(lambda z: z @ a.T + b, b[None] * 0, solver=solver, tol=tol)
    assert solution.converged.all() and solution.nfe <= 2 * n + 1
    exact = torch.linalg.solve(eye - a, b)
    assert (solution.z[0] - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("solver", [Anderson(memory=10), Broyden()])
def test_float32_near_radius_one(solver: Solver) -> None:
    """Where recurrences for inner products drift, products computed directly do not."""
    d = torch.linspace(-0.99, 0.99, 64)
    q = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    a = q @ torch.diag(d) @ q.T
    tol = Tolerance(atol=0.0, rtol=1e-5)
    solution = solve(lambda z: z @ a + 1, torch.zeros(1, 64), solver=solver, tol=tol, max_steps=150)
    assert solution.converged.all(), solution.residual


@pytest.mark.parametrize(
    ("solver", "power", "dtype"),
    [
        (Anderson(), -270, torch.float64),
        (Anderson(), 250, torch.float64),
        (Broyden(), -330, torch.float64),
        (Broyden(), 250, torch.float64),
        (Anderson(), -45, torch.float32),
        (Broyden(), -45, torch.float32),
    ],
)
def test_far_units_change_nothing(solver: Solver, power: int, dtype: torch.dtype) -> None:
    """Squared lengths are then below 1e-200 (float32: 1e-27): what guards a zero may drown them."""
    c = 2.0**power
    d = torch.linspace(-0.9, 0.9, 12, dtype=dtype)
    tol = Tolerance(atol=0.0, rtol=1e-8 if dtype == torch.float64 else 1e-4)
    plain = solve(lambda z: d * z + 1, d[None] * 0, solver=solver, tol=tol)
    other = solve(lambda z: d * z + c, d[None] * 0, solver=solver, tol=tol)
    assert plain.converged.all() and other.steps.tolist() == plain.steps.tolist()
    assert torch.allclose(other.z / c, plain.z, rtol=tol.rtol / 10)


@pytest.mark.parametrize("solver", [Anderson(), Anderson(ridge=0.0), Broyden()])
def test_constant_history_is_tolerated(solver: Solver) -> None:
    """A row that never moves has differences of length zero; its neighbour is solved as ever."""
    b = torch.linspace(-1, 1, 5, dtype=torch.float64)
    f = lambda z: 0.9 * b * z + 1  # noqa: E731
    moving = torch.zeros(1, 5, dtype=torch.float64)
    still = 1 / (1 - 0.9 * b)[None]
    z, state = torch.cat((moving, still)), None
    alone, alone_state = moving, None
    for step in range(12):
        if step == 0:
            state, alone_state = solver.init(z), solver.init(alone)
        fz = torch.cat((f(z[:1]), z[1:]))
        z, state = solver.step(f, z, fz, state)
        alone, alone_state = solver.step(f, alone, f(alone), alone_state)
        assert torch.equal(z[1:], still)
        assert torch.allclose(z[:1], alone, rtol=1e-12)


@pytest.mark.parametrize("solver", [Anderson(), Anderson(ridge=0.0), Broyden()])
def test_no_fixed_point_ends_honestly(solver: Solver) -> None:
    # f(z) - z is constant: every difference of residuals is zero and Broyden's matrix is singular.
    solution = solve(lambda z: z + 1, torch.zeros(2, 3), solver=solver, max_steps=9)
    assert not solution.converged.any() and solution.z.isfinite().all()
    assert torch.allclose(solution.residual, torch.full((2,), 3**0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_ridge_holds_back_directions_that_say_nothing(dtype: torch.dtype) -> None:
    """In double precision, whatever the state's: in single, 1 + 2^-25 is 1."""
    window = Pairs.empty(torch.zeros(1, 9, dtype=dtype), 2)
    ones = lambda count: torch.ones(1, 1, count, dtype=dtype)  # noqa: E731
    window, _ = replace(window, taken=1).solve(ones(1), ones(1), ones(1), ridge=2.0**-25)
    window, weights = replace(window, taken=2).solve(ones(2), ones(2), ones(2), ridge=2.0**-25)
    assert torch.allclose(weights.to(dtype), ones(2) / 2, atol=1e-6)


@given(exponent=st.integers(-60, 60), dtype=st.sampled_from([torch.float64, torch.complex128]))
def test_a_unit_pair_keeps_directions_and_proportion(exponent: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 1, 5, generator=g, dtype=dtype)
    scale = 10.0**exponent
    unit, other, _ = unit_pair(scale * first, scale * second)
    length = first.norm(dim=2, keepdim=True)
    assert torch.allclose(unit, first / length) and torch.allclose(other, second / length)


def test_a_unit_pair_of_nothing_is_nothing() -> None:
    first = torch.zeros(2, 1, 3, requires_grad=True)
    unit, other, _ = unit_pair(first, torch.zeros(2, 1, 3))
    assert not unit.any() and not other.any()
    (unit.sum() + other.sum()).backward()
    assert first.grad.isfinite().all()


def test_small_solve_gives_up_row_by_row() -> None:
    matrix = torch.eye(2, dtype=torch.float64).repeat(5, 1, 1)
    matrix[1] = torch.nan
    matrix[2] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    matrix[3, 0, 0] = 0  # elimination from below leaves a finite number here
    right = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64).repeat(5, 1, 1)
    right[4, 0, 0] = torch.inf
    weights = solve_small(matrix, right)
    assert weights.squeeze(1).tolist() == [
        [1.0, 2.0],
        [0.0, 0.0],
        [0.0, 0.0],
        [0.0, 0.0],
        [0.0, 0.0],
    ]
    assert solve_small(matrix.to(torch.complex128), right).tolist() == weights.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_of_length_zero_gets_nothing(dtype: torch.dtype) -> None:
    window = Pairs.empty(torch.zeros(1, 9, dtype=dtype), 2)
    values = lambda *x: torch.tensor([[x]], dtype=dtype)  # noqa: E731
    window, _ = replace(window, taken=1).solve(values(1), values(1), values(1))
    window, weights = replace(window, taken=2).solve(values(0, 0), values(0, 0), values(3, 0))
    assert weights.tolist() == [[[3.0, 0.0]]]


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden()])
def test_fixed_budget_compiles_whole(solver: Solver) -> None:
    d = torch.linspace(-0.9, 0.9, 8)

    def run(z: Tensor) -> Tensor:
        return solve(lambda z: torch.tanh(d * z + 1), z, solver=solver, tol=None, max_steps=4).z

    z0 = torch.zeros(2, 8)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(z0), run(z0))
