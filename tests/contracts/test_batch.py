"""Samples are independent: whatever happens in one row, the others do not notice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Status, Tolerance, solve
from deqgen_solvers.problems import affine_map, tanh_rnn, with_spectrum
from tests.contracts.table import CALLS_F, METHODS, QUICK, generator

TOL = Tolerance(atol=0.0, rtol=1e-9)


def batch(size: int = 5, unknowns: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Contractions whose radius, and so whose speed, differs from row to row."""
    g = generator(seed)
    a = torch.randn(size, unknowns, unknowns, generator=g, dtype=torch.float64)
    radius = torch.linspace(0.2, 0.9, size, dtype=torch.float64).reshape(-1, 1, 1)
    a = radius * a / torch.linalg.matrix_norm(a, ord=2, keepdim=True)
    b = torch.randn(size, unknowns, generator=g, dtype=torch.float64)
    return torch.zeros_like(b), a, b


def close(x: Tensor, y: Tensor, tolerance: float = 1e-8) -> bool:
    return torch.allclose(x, y, rtol=0, atol=tolerance * float(y.abs().max()))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10)
@given(size=st.integers(1, 6), unknowns=st.integers(1, 8), seed=st.integers(0, 99))
def test_alone_equals_in_a_batch(
    method: str, compact: bool, size: int, unknowns: int, seed: int
) -> None:
    z0, a, b = batch(size, unknowns, seed)
    # Few steps, so that rounding has no time to grow and iterates themselves are compared.
    limits = {"tol": Tolerance(atol=0.0, rtol=1e-4), "max_steps": 8}
    whole = solve(affine_map, z0, (a, b), METHODS[method], compact=compact, **limits)
    for i in range(size):
        row = slice(i, i + 1)
        alone = solve(affine_map, z0[row], (a[row], b[row]), METHODS[method], **limits)
        assert alone.steps.item() == whole.steps[i].item()
        assert alone.status.item() == whole.status[i].item()
        assert close(whole.z[row], alone.z)
        assert close(whole.residual[row], alone.residual, 1e-5)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10)
@given(order=st.permutations(range(5)))
def test_permuting_the_batch_permutes_the_answer(method: str, order: list[int]) -> None:
    z0, a, b = batch()
    plain = solve(affine_map, z0, (a, b), METHODS[method], tol=TOL, max_steps=9)
    mixed = solve(affine_map, z0, (a[order], b[order]), METHODS[method], tol=TOL, max_steps=9)
    assert close(mixed.z, plain.z[order])
    assert mixed.steps.tolist() == plain.steps[order].tolist()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_nonfinite_row_touches_no_other(
    method: str, from_start: bool, poison: float, compact: bool
) -> None:
    z0, a, b = batch()
    calls = 0

    def f(z: Tensor, a: Tensor, b: Tensor, name: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        image = affine_map(z, a, b)
        if from_start or calls > 3:
            image = torch.where(name.unsqueeze(1) == 2, poison, image)
        return image

    def run(poisoned: int) -> object:
        nonlocal calls
        calls = 0
        names = torch.arange(5) if poisoned else torch.full((5,), -1)
        return solve(f, z0, (a, b, names), METHODS[method], tol=TOL, compact=compact, max_steps=400)

    healthy, ill = run(0), run(1)
    others = [0, 1, 3, 4]
    assert ill.status.tolist() == [0, 0, Status.NONFINITE, 0, 0]
    assert close(ill.z[others], healthy.z[others], 1e-7)
    assert ill.z.isfinite().all()
    if from_start:
        assert ill.residual[2].isnan() and ill.steps[2] == 0
        assert torch.equal(ill.z[2], z0[2])
    else:
        assert ill.steps[2] == 3 or (method in CALLS_F and ill.steps[2] < 3)
        true = (affine_map(ill.z, a, b) - ill.z)[2].norm()
        assert torch.allclose(ill.residual[2], true, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_diverging_and_solved_rows_touch_no_other(method: str) -> None:
    z0, a, b = batch()
    plain = solve(affine_map, z0, (a, b), METHODS[method], tol=TOL, max_steps=400)
    # Row 1 is solved at the start; row 3 has no fixed point and its iterates grow without bound.
    z0, a, b = z0.clone(), a.clone(), b.clone()
    z0[1] = torch.linalg.solve(torch.eye(7, dtype=z0.dtype) - a[1], b[1])
    a[3] = torch.eye(7) * 3.0
    a[3, 0, 0] = 1.0
    b[3] = 1e200
    mixed = solve(affine_map, z0, (a, b), METHODS[method], tol=TOL, max_steps=400)
    assert mixed.steps[1] == 0 and mixed.converged[1]
    assert not mixed.converged[3]
    assert close(mixed.z[[0, 2, 4]], plain.z[[0, 2, 4]])
    assert mixed.steps[[0, 2, 4]].tolist() == plain.steps[[0, 2, 4]].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_finished_rows_are_frozen_bit_for_bit(method: str) -> None:
    z0, a, b = batch()
    seen: dict[int, Tensor] = {}

    def watch(progress: object) -> None:
        for row in (~progress.running).nonzero().flatten().tolist():
            now = torch.stack((progress.z[row], progress.fz[row]))
            assert torch.equal(seen.setdefault(row, now), now)

    tol = Tolerance(atol=0.0, rtol=1e-4)
    solution = solve(
        affine_map, z0, (a, b), METHODS[method], tol=tol, max_steps=400, callback=watch
    )
    assert solution.steps.max() > solution.steps.min()
    for row, pair in seen.items():
        assert torch.equal(solution.z[row], pair[0]) and torch.equal(solution.fz[row], pair[1])


@pytest.mark.parametrize("method", METHODS)
def test_compact_evaluates_fewer_rows_for_the_same_answer(method: str) -> None:
    z0, a, b = batch(12)
    rows = 0

    def f(z: Tensor, a: Tensor, b: Tensor, label: str) -> Tensor:
        nonlocal rows
        rows += len(z)
        assert label == "passed on"
        return affine_map(z, a, b)

    args = (a, b, "passed on")
    limits = {"tol": Tolerance(atol=0.0, rtol=1e-5), "max_steps": 400, "trace": True}
    plain = solve(f, z0, args, METHODS[method], **limits)
    plain_rows, rows = rows, 0
    compact = solve(f, z0, args, METHODS[method], compact=True, **limits)
    assert plain_rows == plain.nfe * 12
    assert rows < plain_rows
    # At most a third of the rows that run is evaluated in vain.
    running = (~compact.trace.residual.isnan()).sum(dim=1)
    assert (torch.tensor(compact.trace.rows) * 0.75 <= running).all()
    # The trace has the driver's evaluations; those inside a step are on as many rows.
    assert method in CALLS_F or compact.nfe == len(compact.trace.rows)
    assert method in CALLS_F or rows == sum(compact.trace.rows)
    assert compact.converged.all()
    assert close(compact.z, plain.z, 1e-7)
    assert close(compact.fz, plain.fz, 1e-7)
    true = (affine_map(compact.z, a, b) - compact.z).norm(dim=1)
    assert torch.allclose(compact.residual, true, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(exponent=st.floats(-6, 6))
def test_scaling_the_state_scales_the_answer(method: str, exponent: float) -> None:
    c = 10.0**exponent
    problem = tanh_rnn(0.8)
    w, x = problem.args

    def scaled(z: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return c * problem.f(z / c, w, x)

    # Six steps: a change in the last digit doubles or so in each.
    limits = {"tol": TOL, "max_steps": 2 if method in QUICK else 6}
    plain = solve(problem.f, problem.z0, (w, x), METHODS[method], **limits)
    large = solve(scaled, problem.z0, (w, x), METHODS[method], **limits)
    assert close(large.z, c * plain.z)
    assert close(large.residual, c * plain.residual, 1e-6)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10)
@given(seed=st.integers(0, 999))
def test_orthogonal_change_of_basis_commutes(method: str, seed: int) -> None:
    problem = with_spectrum(-0.9, 0.9, skew=0.2)
    q = torch.linalg.qr(torch.randn(12, 12, generator=generator(seed), dtype=torch.float64))[0]

    def turned(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return problem.f(z @ q.T, a, b) @ q

    limits = {"tol": TOL, "max_steps": 2 if method in QUICK else 8}
    plain = solve(problem.f, problem.z0, problem.args, METHODS[method], **limits)
    other = solve(turned, problem.z0 @ q, problem.args, METHODS[method], **limits)
    assert close(other.z, plain.z @ q)
