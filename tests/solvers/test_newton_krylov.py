"""Newton-Krylov: its order, its forcing, its products, and systems that scipy solves too.

Letters: B samples, N unknowns of one sample.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from torch import Tensor

from deqgen_solvers import ForwardModeError, NewtonKrylov, Picard, Tolerance, make_solver, solve
from deqgen_solvers.methods.line_search import TRIALS, backtrack
from deqgen_solvers.problems import make_problem
from tests.solvers.test_methods import affine, seeds

TIGHT = Tolerance(atol=0.0, rtol=1e-12)
EXACT = NewtonKrylov(inner_steps=30, forcing=1e-14)


def errors(solver: object, f: object, z0: Tensor, exact: Tensor, steps: int) -> list[float]:
    """Distances from the solution after 0, 1, ... steps, first sample."""
    seen: list[float] = []
    never = Tolerance(atol=0.0, rtol=0.0)
    watch = lambda p: seen.append(float((p.z[0] - exact).norm()))  # noqa: E731
    solve(f, z0, solver=solver, tol=never, max_steps=steps, callback=watch)
    return seen


@settings(max_examples=4)
@given(seed=seeds)
def test_with_exact_inner_solves_it_is_newton(seed: int) -> None:
    a, b = affine(5, seed, norm=1.5)
    f = lambda z: torch.sin(z @ a.T) + b  # noqa: E731
    z = 0.3 * b[None]
    state = EXACT.init(z)
    for _ in range(3):
        jacobian = torch.autograd.functional.jacobian(f, z)[0, :, 0]
        system = torch.eye(5, dtype=z.dtype) - jacobian
        expected = z + torch.linalg.solve(system, (f(z) - z)[0])
        scale = float(expected.norm()) * float(torch.linalg.cond(system))
        z, state = EXACT.step(f, z, f(z), state)
        assert (z - expected).norm() <= 1e-10 * scale
        z = expected


@pytest.mark.parametrize("solver", [EXACT, NewtonKrylov(inner_steps=30)])
def test_convergence_is_quadratic(solver: NewtonKrylov) -> None:
    a, b = affine(8, 0)
    f = lambda z: torch.tanh(2 * z @ a.T + b)  # noqa: E731
    exact = solve(f, b[None], solver=EXACT, tol=Tolerance(atol=0.0, rtol=1e-15), max_steps=20).z[0]
    seen = [e for e in errors(solver, f, b[None], exact, 9) if 1e-15 < e < 1]
    assert len(seen) >= 3
    orders = [np.log(new) / np.log(old) for old, new in itertools.pairwise(seen)]
    assert orders[-1] > 1.6


def test_a_loose_constant_forcing_is_only_linear() -> None:
    a, b = affine(8, 0)
    f = lambda z: torch.tanh(2 * z @ a.T + b)  # noqa: E731
    limits = {"tol": TIGHT, "max_steps": 60}
    loose = solve(f, b[None], solver=NewtonKrylov(forcing=0.5), **limits)
    adaptive = solve(f, b[None], solver=NewtonKrylov(), **limits)
    assert loose.converged.all() and adaptive.converged.all()
    assert loose.steps.item() > 2 * adaptive.steps.item()


@pytest.mark.parametrize("jvp", ["forward", "difference"])
@pytest.mark.parametrize(
    "name", ["expansion to the right", "expansion to the left", "cubic", "tridiagonal"]
)
def test_it_converges_where_picard_diverges(name: str, jvp: str) -> None:
    problem = make_problem(name)
    assert not problem.run(Picard()).converged.all()
    solution = problem.run(NewtonKrylov(jvp=jvp))
    assert solution.converged.all() and solution.steps.max() <= 6
    assert problem.solved_by(solution.z).all()


@pytest.mark.parametrize("name", ["tridiagonal", "trigonometric", "bratu", "chandrasekhar"])
def test_solutions_are_those_of_scipy(name: str) -> None:
    problem = make_problem(name)
    ours = problem.run(NewtonKrylov(inner_steps=20), tol=TIGHT)
    assert ours.converged.all()
    for i in range(len(problem.z0)):
        args = tuple(arg[i : i + 1] for arg in problem.args)

        def g(x: np.ndarray, args: tuple[Tensor, ...] = args) -> np.ndarray:
            z = torch.from_numpy(x.copy()).reshape(1, *problem.z0.shape[1:])
            return (problem.f(z, *args) - z).flatten().numpy()

        x0 = ours.z[i].flatten().numpy() + 1e-2
        theirs = scipy.optimize.root(g, x0, tol=1e-13)
        assert np.abs(g(theirs.x)).max() < 1e-9
        assert np.allclose(ours.z[i].flatten().numpy(), theirs.x, rtol=1e-7, atol=1e-8)


def test_it_needs_no_more_than_scipys_newton_krylov() -> None:
    problem = make_problem("tridiagonal", batch=1)
    calls = 0

    def g(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        z = torch.from_numpy(x.copy())[None]
        return (problem.f(z, *problem.args) - z)[0].numpy()

    x0 = problem.z0[0].numpy()
    theirs = scipy.optimize.newton_krylov(g, x0, f_tol=1e-9, method="gmres")
    solution = problem.run(NewtonKrylov(line_search=True), tol=Tolerance(atol=1e-10, rtol=0.0))
    assert solution.converged.all() and solution.nfe <= calls
    assert np.allclose(solution.z[0].numpy(), theirs, atol=1e-6)


def test_each_sample_has_its_own_forcing_term() -> None:
    """An easy sample asks for few products, and a hard one beside it changes nothing in it."""
    d = torch.stack((torch.full((12,), 0.1), torch.linspace(-3, 0.9, 12))).double()
    forcing: list[list[float]] = []

    def f(z: Tensor) -> Tensor:
        return torch.tanh(d[: len(z)] * z) + 0.5

    def run(rows: int) -> object:
        z0 = torch.zeros(rows, 12, dtype=torch.float64)
        return solve(f, z0, solver=NewtonKrylov(), tol=TIGHT)

    alone, both = run(1), run(2)
    assert both.converged.all() and both.nfe > 2 * alone.nfe
    assert both.steps[0] == alone.steps[0]
    assert torch.equal(both.z[0], alone.z[0])
    method = NewtonKrylov()
    z = torch.zeros(2, 12, dtype=torch.float64)
    state = method.init(z)
    for _ in range(3):
        z, state = method.step(f, z, f(z), state)
        forcing.append(state.forcing.tolist())
    assert forcing[0] == [0.5, 0.5] and forcing[2][0] < forcing[2][1]
    assert all(0 < term <= 0.9 for row in forcing for term in row)


def test_forcing_is_choice_two_with_its_safeguard() -> None:
    state = NewtonKrylov().init(torch.zeros(4, 1))
    state = type(state)(
        torch.ones(4).double(), torch.tensor([0.1, 0.9, 0.1, 0.9], dtype=torch.float64), 1
    )
    norm = torch.tensor([0.5, 0.01, 1e-30, 9.0], dtype=torch.float64)
    got = NewtonKrylov()._forcing(norm, state, 1e-16)
    expected = torch.tensor([0.9 * 0.25, 0.9 * 0.81, 1e-15, 0.9], dtype=torch.float64)
    assert torch.allclose(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("line_search", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_derivative_or_value_touches_no_neighbour(poison: float, line_search: bool) -> None:
    a, b = affine(6, 1)

    def f(z: Tensor, bad: Tensor) -> Tensor:
        image = torch.tanh(z @ a.T + b)
        # Row 1: a finite value whose derivative is not. Row 2: bad once away from the start.
        image = image + torch.where(bad == 1, torch.sqrt(z.abs().sum(1, keepdim=True)), 0.0)
        away = (bad == 2) & (z.abs().sum(1, keepdim=True) > 0)
        return torch.where(away, poison, image)

    def run(*kinds: int) -> object:
        bad = torch.tensor(kinds)[:, None]
        solver = NewtonKrylov(line_search=line_search)
        return solve(f, torch.zeros(len(kinds), 6).double(), (bad,), solver, tol=TIGHT)

    ill, healthy = run(0, 1, 2, 0), run(0, 0)
    assert torch.allclose(ill.z[[0, 3]], healthy.z, rtol=0, atol=1e-12)
    assert ill.converged[[0, 3]].all() and ill.status[2] == 2
    assert ill.z.isfinite().all()


def test_products_count_as_calls_and_stop_when_all_samples_are_done() -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z + 1

    solution = solve(f, torch.zeros(3, 4), solver=NewtonKrylov(inner_steps=30))
    # One product settles a multiple of the identity: f(z0), one product, f(answer).
    assert solution.converged.all() and solution.nfe == calls == 3


@pytest.mark.parametrize("jvp", ["forward", "difference"])
@pytest.mark.parametrize("conjugates", [False, True])
def test_complex_states_over_the_reals(jvp: str, conjugates: bool) -> None:
    """The order is 2 even where f is not holomorphic and no complex Jacobian exists."""
    a, b = affine(4, 2, norm=1.6, dtype=torch.complex128)

    def f(z: Tensor) -> Tensor:
        return 0.3 * torch.sin((z.conj() if conjugates else z) @ a.T) * (1 + 0.1 * z) + b

    solver = NewtonKrylov(jvp=jvp)
    solution = solve(f, b[None] * 0, solver=solver, tol=TIGHT, max_steps=9)
    assert solution.converged.all() and solution.z.is_complex()


def test_a_solve_can_be_differentiated() -> None:
    d = torch.linspace(-0.8, 0.8, 4, dtype=torch.float64).requires_grad_()
    f = lambda z: torch.tanh(d * z + 1)  # noqa: E731
    z0 = torch.zeros(1, 4, dtype=torch.float64)
    solver = NewtonKrylov(forcing=1e-12)
    solution = solve(f, z0, solver=solver, tol=None, max_steps=6)
    assert solution.nfe > 6
    (gradient,) = torch.autograd.grad(solution.z.sum(), d)
    z = solution.z.detach()[0]
    slope = 1 - z.square()
    assert torch.allclose(gradient, slope * z / (1 - slope * d.detach()), rtol=1e-8)


class NoFormula(torch.autograd.Function):
    """Twice its argument, without forward mode."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 0.5 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 0.5 * grad


COUNT = torch.zeros(())


def writes(z: Tensor) -> Tensor:
    COUNT.copy_(z.sum())
    return 0.5 * z + 1


def fused(z: Tensor) -> Tensor:
    q = z[:, None, None]
    return 0.1 * torch.nn.functional.scaled_dot_product_attention(q, q, q)[:, 0, 0] + 1


@pytest.mark.parametrize(
    "f",
    [
        lambda z: NoFormula.apply(z) + 1,
        writes,
        fused,
        lambda z: 0.5 * torch.from_numpy(z.numpy()) + 1,
    ],
    ids=["no formula", "writes", "fused", "numpy"],
)
def test_without_forward_mode_there_is_a_sentence_and_a_way_out(f: object) -> None:
    z0 = torch.zeros(2, 3)
    with pytest.raises(ForwardModeError, match=r'Try NewtonKrylov\(jvp="difference"\)'):
        solve(f, z0, solver=NewtonKrylov())
    assert solve(f, z0, solver=NewtonKrylov(jvp="difference")).converged.all()


def test_other_errors_of_f_pass_through_unchanged() -> None:
    for error in (RuntimeError("mine"), NotImplementedError("mine too")):
        calls = 0

        def f(z: Tensor, error: Exception = error) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise error
            return 0.5 * z + 1

        with pytest.raises(type(error)) as caught:
            solve(f, torch.zeros(2, 3), solver="newton_krylov")
        assert caught.value is error


def test_line_search_brings_back_what_newton_throws_away() -> None:
    f = lambda z: z - 3 * torch.atan(z - torch.arange(5))  # noqa: E731
    z0 = torch.full((1, 5), 8.0, dtype=torch.float64)
    tol = Tolerance(atol=1e-10, rtol=0.0)
    plain = solve(f, z0, solver=NewtonKrylov(), tol=tol, max_steps=30)
    found = solve(f, z0, solver=NewtonKrylov(line_search=True), tol=tol, max_steps=30)
    assert not plain.converged.any()
    assert found.converged.all() and torch.allclose(found.z[0], torch.arange(5.0).double())


def test_backtracking_row_by_row() -> None:
    """f(z) = 0, so that a residual is |z|: steps of -1, -6, -40, +1 and NaN from 1."""
    seen: list[list[float]] = []

    def f(z: Tensor) -> Tensor:
        seen.append(z.flatten().tolist())
        return torch.zeros_like(z)

    z = torch.ones(5, 1, dtype=torch.float64)
    step = torch.tensor([-1.0, -6.0, -40.0, 1.0, float("nan")], dtype=torch.float64)[:, None]
    still = torch.tensor([False, False, False, False, True])
    got = backtrack(f, z, step, torch.ones(5).double(), still)
    # The fourth goes where the residual is least, at 1/32 of a step that never helps.
    assert got[:4].flatten().tolist() == [0.0, -0.5, -0.25, 1 + 1 / 32]
    assert len(seen) == TRIALS and [row[0] for row in seen] == [0.0] * TRIALS
    assert [row[1] for row in seen[:4]] == [-5.0, -2.0, -0.5, -0.5]


@pytest.mark.parametrize(
    ("error", "pattern", "options"),
    [
        (ValueError, "inner_steps must be at least 1, got 0", {"inner_steps": 0}),
        (TypeError, "inner_steps must be a whole number", {"inner_steps": 1.5}),
        (ValueError, r"forcing must be None or lie in \(0, 1\), got 1", {"forcing": 1}),
        (ValueError, "forcing must be None or lie", {"forcing": float("nan")}),
        (TypeError, "forcing must be a real number", {"forcing": "auto"}),
        (TypeError, "line_search must be True or False, got 1", {"line_search": 1}),
        (ValueError, "got 'foward'. Did you mean 'forward'", {"jvp": "foward"}),
        (ValueError, "jvp must be 'forward' or 'difference', got None", {"jvp": None}),
        (TypeError, "no option 'inner'", {"inner": 3}),
    ],
)
def test_mistakes(error: type[Exception], pattern: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=pattern):
        make_solver("newton_krylov", **options)
