"""What must not matter does not: units, the basis, the order of a batch, the neighbours.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Solution, Status, Tolerance, solve
from deqgen_solvers.problems import Problem
from tests.contracts.table import METHODS, QUICK, generator
from tests.properties.recipes import DTYPES, Recipe, cells, contractions, seeds

NEVER = Tolerance(atol=0.0, rtol=0.0)
DOUBLE = (torch.float64, torch.complex128)


def same(x: Solution[Tensor], y: Solution[Tensor], rows: list[int]) -> bool:
    pairs = ((x.z, y.z), (x.fz, y.fz), (x.residual, y.residual), (x.steps, y.steps))
    return all(torch.equal(left[rows], right[rows]) for left, right in pairs)


def close(x: Tensor, y: Tensor, tolerance: float = 1e-7) -> bool:
    return torch.allclose(x, y, rtol=0, atol=tolerance * float(y.abs().max()))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8)
@given(recipe=contractions(0.5, 0.95) | cells(DTYPES[:2]), power=st.integers(-20, 20))
def test_units_of_a_power_of_two_change_no_digit(method: str, recipe: Recipe, power: int) -> None:
    """From 1e-6 to 1e6: scaling by 2^k is exact, so a whole solve must be the same bit for bit."""
    c, problem = 2.0**power, recipe(max_steps=200)
    scaled = Problem(
        f=lambda z, *args: c * problem.f(z / c, *args),
        z0=c * problem.z0,
        args=problem.args,
        tol=problem.tol,
        max_steps=200,
    )
    plain, other = problem.run(METHODS[method]), scaled.run(METHODS[method])
    assert other.steps.tolist() == plain.steps.tolist() and other.nfe == plain.nfe
    assert torch.equal(other.z, c * plain.z)
    assert torch.equal(other.residual, c * plain.residual)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8)
@given(recipe=contractions(0.5, 0.95, DOUBLE) | cells(DOUBLE[:1]), seed=seeds)
def test_another_orthonormal_basis(method: str, recipe: Recipe, seed: int) -> None:
    problem = recipe()
    shape, n = problem.z0.shape, problem.z0[0].numel()
    q = torch.randn(n, n, generator=generator(seed), dtype=problem.z0.dtype)
    q = torch.linalg.qr(q)[0]

    def turned(z: Tensor, *args: Tensor) -> Tensor:
        return problem.f((z @ q.mH).reshape(shape), *args).flatten(1) @ q

    # So few steps that the differences stay independent in the smallest cell, whose images lie on a
    # circle: rounding, which is another in each basis, decides how dependent ones are combined.
    limits = {"tol": Tolerance(atol=0.0, rtol=1e-6), "max_steps": 3}
    plain = solve(problem.f, problem.z0, problem.args, METHODS[method], **limits)
    start = problem.z0.flatten(1) @ q
    other = solve(turned, start, problem.args, METHODS[method], **limits)
    assert close(other.z, plain.z.flatten(1) @ q)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8)
@given(recipe=contractions(0.5, 0.9, DOUBLE) | cells(DOUBLE[:1]), size=st.integers(1, 5))
def test_a_sample_alone_and_in_a_batch(method: str, recipe: Recipe, size: int) -> None:
    problem = recipe(batch=size)
    limits = {"tol": Tolerance(atol=0.0, rtol=1e-4), "max_steps": 8}
    whole = solve(problem.f, problem.z0, problem.args, METHODS[method], **limits)
    for i in range(size):
        row = slice(i, i + 1)
        args = tuple(arg[row] for arg in problem.args)
        alone = solve(problem.f, problem.z0[row], args, METHODS[method], **limits)
        assert alone.status.item() == whole.status[i].item()
        assert alone.steps.item() == whole.steps[i].item()
        assert close(alone.z, whole.z[row])


class Batch:
    """z = tanh(d z + b), entry by entry, so that f itself is row-wise to the last bit."""

    def __init__(self, size: int, seed: int) -> None:
        g = generator(seed)
        self.d = 2 * torch.rand(size, 5, generator=g, dtype=torch.float64) - 1.5
        self.b = torch.randn(size, 5, generator=g, dtype=torch.float64)

    def run(
        self, method: str, order: list[int], kinds: list[str], compact: bool = False
    ) -> Solution[Tensor]:
        """``kinds`` says what becomes of each row; ``order`` in which order they stand."""
        calls = 0
        fate = torch.tensor([KINDS.index(kind) for kind in kinds])

        def f(z: Tensor, d: Tensor, b: Tensor, fate: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            image = torch.tanh(d * z + b)
            for kind in {*kinds} - {"well"}:
                rows = (fate == KINDS.index(kind)).unsqueeze(1)
                image = torch.where(rows, spoil(kind, z, image, calls), image)
            return image

        args = tuple(t[order] for t in (self.d, self.b, fate))
        tol = Tolerance(atol=0.0, rtol=1e-10)
        solver = METHODS[method]
        steps = 10 if method in QUICK else 60
        return solve(f, 0 * args[1], args, solver, tol=tol, max_steps=steps, compact=compact)


KINDS = ("well", "nan", "inf", "nan later", "diverging", "solved", "constant residual")


def spoil(kind: str, z: Tensor, image: Tensor, calls: int) -> Tensor:
    return {
        "well": image,
        "nan": image * torch.nan,
        "inf": image + torch.inf,
        "nan later": image * (torch.nan if calls > 3 else 1.0),
        "diverging": 1e30 * (z + 1) * (1 + z.abs()),
        "solved": z,
        "constant residual": z + 1,
    }[kind]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=12)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6),
    seed=seeds,
    compact=st.booleans(),
)
def test_neighbours_do_not_matter(method: str, kinds: list[str], seed: int, compact: bool) -> None:
    batch, order = Batch(len(kinds), seed), list(range(len(kinds)))
    healthy = batch.run(method, order, ["well"] * len(kinds))
    mixed = batch.run(method, order, kinds, compact)
    well = [i for i in order if kinds[i] == "well"]
    if compact:  # other shapes of the same sums: to rounding
        done = [i for i in well if healthy.converged[i] and healthy.steps[i] <= 30]
        assert mixed.converged[done].all()
        assert torch.allclose(mixed.z[done], healthy.z[done], rtol=1e-7, atol=1e-9)
    else:
        assert same(mixed, healthy, well)
    assert mixed.z.isfinite().all()
    for i, kind in enumerate(kinds):
        if kind == "solved":
            assert mixed.converged[i] and mixed.steps[i] == 0
        elif kind in ("nan", "inf"):
            assert mixed.status[i] == Status.NONFINITE and mixed.steps[i] == 0
        elif kind == "diverging":
            assert not mixed.converged[i]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=8)
@given(order=st.permutations(range(5)), seed=seeds)
def test_order_of_the_batch(method: str, order: list[int], seed: int) -> None:
    batch, kinds = Batch(5, seed), ["well", "well", "nan later", "solved", "well"]
    plain, mixed = batch.run(method, list(range(5)), kinds), batch.run(method, order, kinds)
    assert torch.equal(mixed.z, plain.z[order]) and torch.equal(mixed.fz, plain.fz[order])
    assert mixed.steps.tolist() == plain.steps[order].tolist()
    assert mixed.status.tolist() == plain.status[order].tolist()
