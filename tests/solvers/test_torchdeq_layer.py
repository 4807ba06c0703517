"""Our solvers behind torchdeq's layer.

Letters: B samples, T evaluations.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen_solvers import Status, Tolerance, solve
from deqgen_solvers.bridges import register_into_torchdeq
from tests.solvers.torchdeq_cases import (
    Affine,
    Counted,
    Watched,
    generator,
    residual,
    torchdeq_with_ours,
)


@pytest.fixture
def torchdeq() -> Any:
    return torchdeq_with_ours()


class Tanh:
    """z = tanh(W z + x) for 4 samples of 6 unknowns, its solution and its exact gradient."""

    def __init__(self, norm: float = 0.9) -> None:
        g = generator(1)
        weight = torch.randn(6, 6, generator=g, dtype=torch.float64)
        self.weight = (norm * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
        self.x = torch.randn(4, 6, generator=g, dtype=torch.float64)
        self.z0 = torch.zeros_like(self.x)
        tight = Tolerance(atol=0.0, rtol=1e-15)
        self.z = solve(self.f, self.z0, (), "picard", tol=tight, max_steps=1000).z

    def f(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + self.x)

    def exact_gradient(self) -> Tensor:
        """Of sum(z^2 / 2) in the weight, by a dense solve with I - J^T."""
        slope = 1 - self.z**2
        jacobian = slope.unsqueeze(2) * self.weight.detach()
        adjoint = torch.linalg.solve(
            torch.eye(6, dtype=torch.float64) - jacobian.mT, self.z.unsqueeze(2)
        ).squeeze(2)
        return (adjoint * slope).T @ self.z


@pytest.mark.parametrize("core", ["sliced", "indexing"])
@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("f_solver", ["deqgen/anderson", "deqgen/picard"])
def test_gradients_are_the_exact_ones(f_solver: str, hook: bool, core: str, torchdeq: Any) -> None:
    problem = Tanh()
    settings = {"f_max_iter": 300, "b_max_iter": 100, "f_tol": 1e-12, "b_tol": 1e-12}
    solvers = {"f_solver": f_solver, "b_solver": "deqgen/broyden", "core": core}
    deq = torchdeq.get_deq(ift=not hook, hook_ift=hook, **solvers, **settings)
    reports: list[Any] = []
    states, info = deq(problem.f, problem.z0, backward_writer=reports.append)
    assert torch.allclose(states[-1], problem.z, rtol=1e-10, atol=1e-10)
    (states[-1] ** 2 / 2).sum().backward()
    assert torch.allclose(problem.weight.grad, problem.exact_gradient(), rtol=1e-9, atol=1e-9)
    for report in (info, *reports):
        assert (report["status"] == Status.CONVERGED).all() and (report["abs_lowest"] < 1e-12).all()
    assert len(reports) == 1


def test_the_last_state_is_not_lost(torchdeq: Any) -> None:
    """torchdeq's own solver stops early and drops the last state with its gradient."""
    problem = Tanh()
    settings = {"f_max_iter": 150, "b_max_iter": 100, "f_tol": 1e-12, "b_tol": 1e-12}
    counts = {}
    for prefix in ("", "deqgen/"):
        solvers = {"f_solver": f"{prefix}anderson", "b_solver": f"{prefix}broyden"}
        shape = {"core": "indexing", "n_states": 3, "ift": True}
        states, _ = torchdeq.get_deq(**solvers, **shape, **settings)(problem.f, problem.z0)
        problem.weight.grad = None
        (states[-1] ** 2 / 2).sum().backward()
        wrong = (problem.weight.grad - problem.exact_gradient()).norm()
        counts[prefix] = (len(states) == 3, bool(wrong < 1e-9))
    assert counts == {"": (False, False), "deqgen/": (True, True)}


def test_evaluation_reports_the_truth(torchdeq: Any) -> None:
    problem = Tanh()
    f = Counted(problem.f)
    deq = torchdeq.get_deq(f_solver="deqgen/anderson", f_tol=1e-6).eval()
    states, info = deq(f, problem.z0)
    true = residual(problem.f, states[-1])
    size = problem.f(states[-1]).norm(dim=1)
    assert torch.equal(info["abs_lowest"], true)
    assert torch.allclose(info["rel_lowest"], true / size)
    assert (true < 1e-6).all()
    assert info["abs_trace"].shape == info["rel_trace"].shape == (4, f.calls)
    assert torch.equal(info["abs_trace"][:, -1], true)
    assert info["nstep"].max() == f.calls
    at = info["nstep"].long() - 1
    assert torch.equal(info["abs_trace"].gather(1, at.unsqueeze(1)).squeeze(1), true)
    keys = {"abs_lowest", "rel_lowest", "abs_trace", "rel_trace", "nstep", "sradius"}
    assert keys <= set(info)


@pytest.mark.parametrize("mode", ["abs", "rel"])
def test_each_sample_stops_on_its_own_by_torchdeqs_rule(mode: str, torchdeq: Any) -> None:
    problem = Affine(0.5)
    b = problem.args[1] * torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64).unsqueeze(1)
    f = lambda z: problem.f(z, problem.args[0], b)  # noqa: E731
    ours = torchdeq.solver.get_solver("deqgen/picard")
    z, _, info = ours(f, problem.z0, tol=1e-5, stop_mode=mode, max_iter=100)
    lowest = residual(f, z) / (f(z).norm(dim=1) if mode == "rel" else 1)
    assert (lowest <= 1e-5).all() and (info["status"] == Status.CONVERGED).all()
    trace = info[f"{mode}_trace"]  # (B, T)
    for row in range(3):
        at = int(info["nstep"][row])
        assert (trace[row, : at - 1] > 1e-5).all() and trace[row, at - 1] <= 1e-5
    assert (info["nstep"].unique().numel() == 3) == (mode == "abs")


def test_max_iter_bounds_the_evaluations(torchdeq: Any) -> None:
    problem = Tanh()
    ours = torchdeq.solver.get_solver("deqgen/picard")
    for max_iter in (1, 2, 5, 7.0):
        f = Counted(problem.f)
        z, trajectory, info = ours(f, problem.z0, max_iter=max_iter, tol=0.0)
        assert f.calls == max_iter and trajectory == []
        assert torch.equal(info["abs_lowest"], residual(problem.f, z))
        assert info["nstep"].tolist() == [max_iter] * 4


def test_indexing_gives_the_best_state_so_far(torchdeq: Any) -> None:
    problem = Tanh()
    points = Watched(problem.f)
    ours = torchdeq.solver.get_solver("deqgen/picard")
    z, states, _ = ours(points, problem.z0, max_iter=12, tol=1e-3, indexing=[1, 3, 12, 40])
    assert len(states) == 4
    assert torch.equal(states[0], problem.z0) and torch.equal(states[1], points.points[2])
    assert torch.equal(states[2], z) and torch.equal(states[3], z)


def test_return_final(torchdeq: Any) -> None:
    f = lambda z: -1.2 * z + 1  # noqa: E731
    z0 = torch.full((2, 3), 0.4, dtype=torch.float64)
    ours = torchdeq.solver.get_solver("deqgen/picard")
    best, _, info = ours(f, z0, max_iter=6, tol=1e-6)
    assert torch.equal(best, z0) and info["nstep"].tolist() == [1, 1]
    last, states, info = ours(f, z0, max_iter=6, tol=1e9, return_final=True, indexing=[3, 6])
    assert torch.equal(info["abs_lowest"], residual(f, last)) and info["nstep"].tolist() == [6, 6]
    assert torch.equal(states[1], last) and torch.equal(states[0], f(f(z0)))


def test_a_nan_in_one_sample(torchdeq: Any) -> None:
    problem = Tanh()
    problem.x[1] = torch.nan
    deq = torchdeq.get_deq(f_solver="deqgen/anderson", f_tol=1e-8).eval()
    states, info = deq(problem.f, problem.z0)
    assert (info["status"] == Status.CONVERGED).tolist() == [True, False, True, True]
    assert info["abs_lowest"].isnan().tolist() == [False, True, False, False]
    assert torch.allclose(states[-1][[0, 2, 3]], problem.z[[0, 2, 3]], atol=1e-7)
    assert torch.equal(states[-1][1], problem.z0[1])


@pytest.mark.parametrize("no_stat", [False, True])
def test_several_tensors_as_a_state(no_stat: bool, torchdeq: Any) -> None:
    f = lambda a, b: (0.5 * a + b.mean((1, 2)).unsqueeze(1), 0.5 * b + 1)  # noqa: E731
    deq = torchdeq.get_deq(f_solver="deqgen/broyden", f_tol=1e-5)
    deq.no_stat = no_stat
    states, info = deq(f, [torch.zeros(3, 2), torch.zeros(3, 2, 4)])
    assert (info["abs_lowest"] < 1e-5).all()
    assert torch.allclose(states[-1][0], torch.tensor(4.0), atol=1e-4)
    assert torch.allclose(states[-1][1], torch.tensor(2.0), atol=1e-4)


def test_an_empty_batch(torchdeq: Any) -> None:
    ours = torchdeq.solver.get_solver("deqgen/anderson")
    z, states, info = ours(lambda z: z, torch.zeros(0, 3), indexing=[2])
    assert z.shape == states[0].shape == (0, 3) and info["abs_lowest"].shape == (0,)


def test_registering_again_changes_nothing(torchdeq: Any) -> None:
    names = register_into_torchdeq()
    assert {"deqgen/anderson", "deqgen/broyden", "deqgen/picard"} <= set(names)
    assert not [name for name in names if "torchdeq" in name]
    before = {name: torchdeq.solver.get_solver(name) for name in names}
    assert register_into_torchdeq() == names
    assert all(torchdeq.solver.get_solver(name) is solver for name, solver in before.items())


@pytest.mark.parametrize(
    ("error", "pattern", "options"),
    [
        (TypeError, "'anderson' has no option 'memry'. Did you mean 'memory'", {"memry": 3}),
        (TypeError, "'anderson' has no option 'lam'", {"lam": 1e-4}),
        (ValueError, "stop_mode must be 'abs' or 'rel', got 'relative'", {"stop_mode": "relative"}),
        (ValueError, "anderson: max_iter must be at least 1, got 0", {"max_iter": 0}),
        (TypeError, "max_iter must be a whole number, got 2.5", {"max_iter": 2.5}),
        (ValueError, "anderson: tol must be finite and >= 0, got -1.0", {"tol": -1.0}),
    ],
)
def test_mistakes_there(
    error: type[Exception], pattern: str, options: dict[str, Any], torchdeq: Any
) -> None:
    ours = torchdeq.solver.get_solver("deqgen/anderson")
    with pytest.raises(error, match=pattern):
        ours(lambda z: z / 2, torch.ones(1, 2), **options)


def test_options_reach_the_solver(torchdeq: Any) -> None:
    problem = Tanh()
    deq = torchdeq.get_deq(f_solver="deqgen/anderson", f_tol=1e-9).eval()
    counts = []
    for memory in (1, 5):
        f = Counted(problem.f)
        deq(f, problem.z0, solver_kwargs={"memory": memory, "f_max_iter": 60})
        counts.append(f.calls)
    assert counts[0] > counts[1]
