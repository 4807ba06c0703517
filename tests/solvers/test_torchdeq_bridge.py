"""torchdeq's solvers behind our driver.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen_solvers import Status, Tolerance, available_solvers, make_solver, solve
from deqgen_solvers.bridges import register_into_torchdeq
from deqgen_solvers.bridges.torchdeq import (
    TorchdeqAnderson,
    TorchdeqBroyden,
    TorchdeqFixedPointIter,
)
from tests.solvers.torchdeq_cases import Affine, Counted, Watched, residual, torchdeq_with_ours

REPOSITORY = Path(__file__).resolve().parents[2]
TOL = Tolerance(atol=0.0, rtol=1e-9)
THEIRS = (
    "torchdeq/anderson",
    "torchdeq/broyden",
    "torchdeq/fixed_point_iter",
    "torchdeq/simple_fixed_point_iter",
)


@pytest.fixture
def torchdeq() -> Any:
    return torchdeq_with_ours()


def test_names_are_listed_and_nothing_is_imported() -> None:
    script = (
        "import sys, torch, deqgen_solvers as s\n"
        f"assert {set(THEIRS)} <= set(s.available_solvers())\n"
        "s.solve(lambda z: z / 2 + 1, torch.zeros(1, 1))\n"
        "assert 'torchdeq' not in sys.modules\n"
        "s.make_solver('torchdeq/anderson')\n"
        "assert 'torchdeq' in sys.modules\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", THEIRS)
def test_same_answer_as_a_dense_solve(name: str) -> None:
    problem = Affine(0.5)
    f = Counted(problem.f)
    solution = solve(f, problem.z0, problem.args, name, tol=TOL, max_steps=100)
    assert solution.converged.all()
    assert torch.allclose(solution.z, problem.exact, rtol=1e-7, atol=1e-7)
    assert solution.nfe == f.calls
    assert torch.equal(solution.residual, residual(problem.f, solution.z, *problem.args))


@pytest.mark.parametrize("name", THEIRS)
def test_the_points_are_those_that_torchdeq_evaluates(name: str, torchdeq: Any) -> None:
    problem = Affine(0.9)
    alone, ours = Watched(problem.f), Watched(problem.f)
    method = torchdeq.solver.get_solver(name.split("/")[1])
    method(lambda z, tau=1.0: alone(z, *problem.args), problem.z0, max_iter=30, tol=-1.0)
    steps = len(alone.points) - 1
    solve(ours, problem.z0, problem.args, name, tol=Tolerance(atol=0, rtol=0), max_steps=steps)
    assert len(ours.points) == len(alone.points) >= 30
    assert all(torch.equal(a, b) for a, b in zip(ours.points, alone.points, strict=True))


@pytest.mark.parametrize("max_steps", [0, 1, 2, 7])
@pytest.mark.parametrize("name", THEIRS)
def test_steps_and_evaluations(name: str, max_steps: int) -> None:
    problem = Affine(0.9)
    f = Counted(problem.f)
    solution = solve(f, problem.z0, problem.args, name, tol=TOL, max_steps=max_steps, trace=True)
    assert solution.nfe == f.calls == max_steps + 1 == len(solution.trace.residual)
    assert solution.steps.tolist() == [max_steps] * 3
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3
    budget = solve(problem.f, problem.z0, problem.args, name, tol=None, max_steps=max_steps)
    assert budget.nfe == max_steps


def test_the_residual_is_true_where_theirs_is_not(torchdeq: Any) -> None:
    """Damped by 0.001, torchdeq calls the first step converged; it measures the damped step."""
    f = lambda z: 0.5 * z + 1  # noqa: E731
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    options = {"tau": 0.001, "max_iter": 50}
    z, _, info = torchdeq.solver.get_solver("fixed_point_iter")(f, z0, tol=2e-3, **options)
    assert (info["abs_lowest"] < 2e-3).all() and (residual(f, z) > 0.99).all()
    method = TorchdeqFixedPointIter(tau=0.001)
    solution = solve(f, z0, (), method, tol=Tolerance(atol=2e-3, rtol=0.0), max_steps=50)
    assert not solution.converged.any()
    assert (
        torch.equal(solution.residual, residual(f, solution.z)) and (solution.residual > 0.9).all()
    )


def test_divergence_is_not_called_convergence(torchdeq: Any) -> None:
    """In its relative mode torchdeq calls an iteration that runs away converged."""
    f = lambda z: 1.001 * z + 1  # noqa: E731
    z0 = torch.full((1, 4), 1e6, dtype=torch.float64)
    solver = torchdeq.solver.get_solver("fixed_point_iter")
    _, _, info = solver(f, z0, tol=1e-2, stop_mode="rel", max_iter=50)
    assert info["nstep"] == 1
    solution = solve(f, z0, (), "torchdeq/fixed_point_iter", tol=TOL, max_steps=50)
    assert solution.status.tolist() == [Status.MAX_STEPS]
    assert torch.equal(solution.residual, residual(f, solution.z))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_a_sample_with_nan_disturbs_no_other(name: str, compact: bool) -> None:
    problem = Affine(0.5)
    a, b = problem.args
    calls = 0

    def f(z: Tensor, a: Tensor, b: Tensor, poison: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        bad = poison.unsqueeze(1) * (torch.nan if calls > 4 else 0.0)
        return problem.f(z, a, b) + torch.where(poison.unsqueeze(1) > 0, bad, 0.0)

    poison = torch.tensor([0.0, 1.0, 0.0], dtype=b.dtype)
    args = (a, b, poison)
    solution = solve(f, problem.z0, args, name, tol=TOL, max_steps=100, compact=compact)
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    assert solution.steps[1] == 4
    assert torch.allclose(solution.z[[0, 2]], problem.exact[[0, 2]], rtol=1e-7, atol=1e-7)
    assert solution.z[1].isfinite().all()
    assert torch.allclose(solution.residual[1], residual(problem.f, solution.z, a, b)[1])


@pytest.mark.parametrize("name", THEIRS)
def test_an_answer_depends_on_no_batch_mate(name: str) -> None:
    problem = Affine(0.5)
    scale = torch.tensor([1e-8, 1.0, 1e4], dtype=torch.float64)  # they finish at different steps
    a, b = problem.args[0] * torch.tensor([0.1, 1, 1.5]).view(3, 1, 1), problem.args[1]
    b = b * scale.unsqueeze(1)
    for compact in (False, True):
        whole = solve(problem.f, problem.z0, (a, b), name, tol=TOL, max_steps=60, compact=compact)
        for row in range(3):
            one = slice(row, row + 1)
            alone = solve(problem.f, problem.z0[one], (a[one], b[one]), name, tol=TOL, max_steps=60)
            assert alone.status == whole.status[one] and alone.steps == whole.steps[one]
            assert torch.allclose(alone.z, whole.z[one], rtol=1e-8, atol=1e-8 * scale[row].item())


def test_f_sees_the_running_rows_alone() -> None:
    problem = Affine(0.9)
    a = problem.args[0] * torch.tensor([0.01, 0.02, 1.0]).view(3, 1, 1)
    run = {"args": (a, problem.args[1]), "solver": "torchdeq/broyden", "tol": TOL, "trace": True}
    solution = solve(problem.f, problem.z0, compact=True, max_steps=50, **run)
    assert solution.converged.all()
    assert solution.trace.rows[0] == 3 and solution.trace.rows[-1] == 1


def test_broyden_begins_anew_when_its_memory_is_spent() -> None:
    problem = Affine(0.5)
    solver = TorchdeqBroyden(max_iter=5)
    f = Counted(problem.f)
    solution = solve(f, problem.z0, problem.args, solver, tol=TOL, max_steps=60)
    assert solution.converged.all() and solution.nfe == f.calls > 7
    assert torch.allclose(solution.z, problem.exact, rtol=1e-7, atol=1e-7)


def test_line_search_counts_its_trials() -> None:
    problem = Affine(0.9)
    f = Counted(problem.f)
    solver = TorchdeqBroyden(ls=True)
    solution = solve(f, problem.z0, problem.args, solver, tol=TOL, max_steps=80)
    assert solution.nfe == f.calls and (solution.steps < solution.nfe).all()
    assert torch.equal(solution.residual, residual(problem.f, solution.z, *problem.args))


@pytest.mark.parametrize("name", ["torchdeq/fixed_point_iter", "torchdeq/simple_fixed_point_iter"])
def test_autograd_follows_a_fixed_budget(name: str) -> None:
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    z0 = torch.ones(2, 1, dtype=torch.float64)
    solve(lambda z: gain * z, z0, (), name, tol=None, max_steps=3).z.sum().backward()
    assert torch.allclose(gain.grad, 2 * 3 * gain.detach() ** 2)


def test_states_that_torchdeq_does_not_take() -> None:
    z0 = {"a": torch.zeros(3, 2), "b": (torch.zeros(3, 2, 2, dtype=torch.complex64),)}
    f = lambda z: {"a": 0.5 * z["a"] + 1, "b": (0.5j * z["b"][0] + 1,)}  # noqa: E731
    solution = solve(f, z0, (), "torchdeq/anderson", max_steps=200)
    assert solution.converged.all()
    assert torch.allclose(solution.z["a"], torch.tensor(2.0), atol=1e-3)
    assert torch.allclose(solution.z["b"][0], torch.tensor(1 / (1 - 0.5j)), atol=1e-3)
    empty = solve(f, {"a": z0["a"][:0], "b": (z0["b"][0][:0],)}, (), "torchdeq/anderson")
    assert empty.nfe == 0 and empty.z["a"].shape == (0, 2)


def test_no_thread_outlives_its_solve() -> None:
    def broken(z: Tensor) -> Tensor:
        raise RuntimeError("from within f")

    def mistaken(z: Tensor) -> Tensor:
        return z[:, :1]

    z0 = torch.zeros(2, 3)
    for name in THEIRS:
        solve(lambda z: 0.5 * z + 1, z0, (), name, max_steps=3)
        with pytest.raises(RuntimeError, match="from within f"):
            solve(broken, z0, (), name)
        with pytest.raises(ValueError, match="must return the shape"):
            solve(mistaken, z0, (), name)
    deadline = time.monotonic() + 20
    while any(thread.name == "paced-solver" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_torchdeq_raises_arrives() -> None:
    """Without ridge and with two equal residuals its matrix is singular; that ends the batch."""
    f = lambda z: z + 1  # noqa: E731
    with pytest.raises(torch.linalg.LinAlgError):
        solve(f, torch.zeros(2, 3), (), TorchdeqAnderson(lam=0.0), max_steps=10)


@pytest.mark.parametrize(
    ("error", "pattern", "call"),
    [
        (ValueError, "Did you mean 'torchdeq/anderson'", ("torchdeq/andersen", {})),
        (TypeError, r"has no option 'mm'\. Did you mean 'm'\?", ("torchdeq/anderson", {"mm": 3})),
        (
            TypeError,
            "no option 'LBFGS_thresh'.*'LBFGS_thres'",
            ("torchdeq/broyden", {"LBFGS_thresh": 3}),
        ),
        (TypeError, r"It has: \['tau'\]", ("torchdeq/fixed_point_iter", {"damping": 0.5})),
        (ValueError, "m must be at least 2, got 1", ("torchdeq/anderson", {"m": 1})),
        (TypeError, "m must be a whole number", ("torchdeq/anderson", {"m": 2.0})),
        (ValueError, "lam must be finite and >= 0", ("torchdeq/anderson", {"lam": -1.0})),
        (ValueError, "tau must be finite and > 0", ("torchdeq/fixed_point_iter", {"tau": 0})),
        (
            TypeError,
            "tau must be a real number",
            ("torchdeq/simple_fixed_point_iter", {"tau": "1"}),
        ),
        (ValueError, "max_iter must be at least 1", ("torchdeq/broyden", {"max_iter": 0})),
        (ValueError, "LBFGS_thres must be at least 1", ("torchdeq/broyden", {"LBFGS_thres": 0})),
        (TypeError, "ls must be True or False", ("torchdeq/broyden", {"ls": 1})),
    ],
)
def test_mistakes(error: type[Exception], pattern: str, call: tuple[str, dict[str, Any]]) -> None:
    name, options = call
    with pytest.raises(error, match=pattern):
        make_solver(name, **options)


def test_without_torchdeq(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] == "torchdeq"]
    for name in {*loaded, "torchdeq"}:
        monkeypatch.setitem(sys.modules, name, None)
    assert not [name for name in available_solvers() if name.startswith("torchdeq")]
    sentence = "needs the package 'torchdeq', which is not installed.*pip install torchdeq$"
    with pytest.raises(ImportError, match=f"^Solver 'torchdeq/broyden' {sentence}"):
        make_solver("torchdeq/broyden")
    with pytest.raises(ImportError, match=f"^The torchdeq bridge {sentence}"):
        TorchdeqAnderson()
    with pytest.raises(ImportError, match=f"^The torchdeq bridge {sentence}"):
        register_into_torchdeq()
