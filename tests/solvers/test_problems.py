"""The public problems are what they say they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deqgen_solvers import OptionError, OptionTypeError, Tolerance, problems, solve
from deqgen_solvers.problems import Problem, available_problems, make_problem
from deqgen_solvers.state import check_rows, take_rows

NAMES = available_problems()


@pytest.mark.parametrize("name", NAMES)
def test_exact_answers_solve_and_others_do_not(name: str) -> None:
    problem = make_problem(name)
    z = problem.run("anderson").z if problem.exact is None else problem.exact
    assert problem.solved_by(z).all()
    assert z.shape == problem.z0.shape and z.dtype == problem.z0.dtype
    beside = z + 3 * problem.error * (1 + z.flatten(1).norm(dim=1).amax())
    if problem.exact is not None:
        assert not problem.solved_by(beside).any()
    assert not problem.solved_by(z * torch.nan).any()
    assert not problem.solved_by(z + 1).any()


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent_and_can_be_gathered(name: str) -> None:
    problem = make_problem(name)
    check_rows(problem.args, len(problem.z0))
    z = problem.z0 + 0.1
    rows = torch.tensor([len(z) - 1, 0])
    part = problem.f(z[rows], *take_rows(problem.args, rows))
    assert torch.allclose(part, problem.f(z, *problem.args)[rows], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_precision_and_seeds_are_the_users(name: str) -> None:
    plain, again = make_problem(name), make_problem(name)
    assert torch.equal(plain.z0, again.z0)
    assert all(torch.equal(x, y) for x, y in zip(plain.args, again.args, strict=True))
    for batch in (1, 5):
        assert len(make_problem(name, batch=batch).z0) == batch
    single = torch.complex64 if plain.z0.is_complex() else torch.float32
    problem = make_problem(name, dtype=single, max_steps=7)
    assert problem.max_steps == 7 and problem.f(problem.z0, *problem.args).dtype == single
    assert all(arg.dtype == single for arg in problem.args)
    for x, y in zip((plain.z0, *plain.args), (problem.z0, *problem.args), strict=True):
        assert torch.allclose(x.to(single), y, rtol=1e-5, atol=1e-6)
    if "seed" in str(_mistake(name)):
        other = make_problem(name, seed=77)
        assert not all(torch.equal(x, y) for x, y in zip(plain.args, other.args, strict=True))
    if "size" in str(_mistake(name)):
        assert make_problem(name, size=4).z0.shape == (len(plain.z0), 4)


def _mistake(name: str) -> OptionTypeError:
    with pytest.raises(OptionTypeError) as caught:
        make_problem(name, no_such_option=1)
    return caught.value


def test_mistakes() -> None:
    with pytest.raises(OptionError, match=r"'cosin'\. Did you mean 'cosine'\? Available: \["):
        make_problem("cosin")
    with pytest.raises(OptionTypeError, match=r"no option 'sede'\. Did you mean 'seed'\?"):
        make_problem("contraction 0.9", sede=3)
    with pytest.raises(OptionError, match="size must be even"):
        make_problem("rotation 0.9", size=5)
    with pytest.raises(TypeError):
        make_problem("cosine").failures["picard"] = "mine"


def test_a_method_of_ones_own() -> None:
    class Halfway:
        def init(self, z0: Tensor) -> None:
            return None

        def step(self, f: object, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
            return (z + fz) / 2, None

    def solved(name: str) -> bool:
        problem = make_problem(name)
        return bool(problem.solved_by(problem.run(Halfway()).z).all())

    assert solved("cosine") and solved("expansion to the left")
    assert not solved("expansion to the right")


def test_the_judge_believes_nobody() -> None:
    """A small residual is not enough where it says little, nor another solution."""
    problem = make_problem("contraction 0.999")
    loose = problem.run("anderson", tol=Tolerance(atol=0.0, rtol=1e-6))
    assert loose.converged.all() and not problem.solved_by(loose.z).any()
    mirror = make_problem("trigonometric")
    far = solve(mirror.f, mirror.z0 * 10, solver="anderson", tol=mirror.tol, max_steps=400)
    other = far.converged & (far.z.norm(dim=1) > 1e-3)
    assert other.any() and not mirror.solved_by(far.z)[other].any()


def jacobian(problem: Problem, z: Tensor) -> Tensor:
    """(B, N, N) of f at z, one sample at a time."""
    parts = []
    for i in range(len(z)):
        args = tuple(arg[i : i + 1] for arg in problem.args)
        f = lambda v, args=args: problem.f(v.reshape(1, *z.shape[1:]), *args).flatten()  # noqa: E731
        parts.append(torch.autograd.functional.jacobian(f, z[i].flatten()))
    return torch.stack(parts)


def eigenvalues(name: str) -> Tensor:
    problem = make_problem(name)
    return torch.linalg.eigvals(jacobian(problem, problem.run("broyden").z))


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("contraction", "non-normal"))])
def test_spectral_radius_is_the_one_in_the_name(name: str) -> None:
    radius = eigenvalues(name).abs().amax(dim=1)
    expected = torch.full_like(radius, float(name.split()[1].strip(",")))
    assert torch.allclose(radius, expected, rtol=1e-5)
    a = make_problem(name).args[0]
    off = torch.linalg.matrix_norm(a @ a.mT - a.mT @ a)
    assert ((off > 0.1) == name.startswith("non-normal")).all()


def test_reasons_for_failures_are_right() -> None:
    for name in ("expansion to the left", "poisson", "cubic", "tridiagonal"):
        assert (eigenvalues(name).real.amin(dim=1) < -1).all(), name
    assert (eigenvalues("expansion to the right").real > 1).all()
    for name in ("rotation 1.1", "pipes", "attention"):
        assert (eigenvalues(name).abs().amax(dim=1) > 1).all(), name
    for name in ("tanh 0.8", "transformer", "chandrasekhar", "bratu", "bratu, square"):
        assert (eigenvalues(name).abs().amax(dim=1) < 1).all(), name


def test_the_boundary_value_problem_by_two_maps_and_by_hand() -> None:
    by_differences = make_problem("boundary value", size=40, batch=1).run("anderson")
    by_integral = make_problem("boundary value, integral", size=40, batch=1).run("anderson")
    assert by_differences.converged.all() and by_integral.converged.all()
    assert torch.allclose(by_differences.z, by_integral.z, rtol=0, atol=1e-6)
    t = torch.arange(1, 41, dtype=torch.float64) / 41
    assert torch.allclose(by_integral.z, 2 / (2 - t) - t - 1, rtol=0, atol=2e-4)  # the grid's error


def test_bratu_has_its_closed_form() -> None:
    """u = -2 log(cosh((x - 1/2) q / 2) / cosh(q / 4)) with q = sqrt(2 s) cosh(q / 4)."""
    problem = problems.bratu(size=100, strength=3.0)
    solution = problem.run("anderson")
    x = torch.arange(1, 101, dtype=torch.float64) / 101
    for s, u in zip(problem.args[0].flatten().tolist(), solution.z, strict=True):
        q = 0.0
        for _ in range(200):
            q = math.sqrt(2 * s) * math.cosh(q / 4)
        exact = -2 * (((x - 0.5) * q / 2).cosh() / math.cosh(q / 4)).log()
        assert torch.allclose(u, exact, rtol=0, atol=1e-3)


def test_chandrasekhar_has_its_integral() -> None:
    """The mean of H is 2/c (1 - sqrt(1 - c)), on any grid."""
    problem = make_problem("chandrasekhar")
    c = problem.args[0].squeeze(1)
    mean = problem.run("anderson").z.mean(dim=1)
    assert torch.allclose(mean, 2 / c * (1 - (1 - c).sqrt()), rtol=1e-7)
