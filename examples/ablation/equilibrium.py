"""Is there an equilibrium, and does it depend on the start? See ablate_solvers.py.

Some samples are followed for long, in float64.

Letters: B samples, N unknowns of a sample, C channels, H and W sides.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ablation.study import NEVER, STARTS, Problem, Study
from deqgen.gradients import State
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.solvers import Picard, Progress, Solver, SolverError, solve
from deqgen_solvers.diagnostics import contraction_rate, spectral_radius
from deqgen_solvers.state import Layout

REACHED = 1e-6
"""A residual is gone once it is this small beside the first one."""
AWAY = 1e3
"""A state is gone once it is this large beside the first image: there z + g rounds to z, and even
its residual may be zero."""


@dataclass
class Path:
    """A solve, evaluation by evaluation."""

    layout: Layout
    evaluations: list[int] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)  # (B,) ||f(z) - z||
    size: list[Tensor] = field(default_factory=list)  # (B,) ||f(z)||
    calls: int = 0

    def __call__(self, progress: Progress) -> bool:
        assert progress.residual is not None
        image = self.layout.flatten(progress.fz)  # (B, N)
        self.evaluations.append(self.calls)
        self.residual.append(progress.residual)
        self.size.append(torch.linalg.vector_norm(image, dim=1).cpu())
        return False

    @property
    def reached(self) -> Tensor:
        """(B,) whether a sample came to a fixed point that is somewhere."""
        residual, size = torch.stack(self.residual), torch.stack(self.size)  # (T, B) each
        here = (residual <= REACHED * residual[0]) & (size <= AWAY * size[0])
        return here.any(dim=0)

    @property
    def away(self) -> Tensor:
        """(B,) whether its state has run away."""
        return ~(self.size[-1] <= AWAY * self.size[0])


def follow(
    model: EquilibriumModel,
    args: tuple[Tensor, ...],
    z0: State,
    solver: Any,
    evaluations: int,
    look: Callable[[State], None] = lambda _: None,
) -> Path:
    """Solve without a tolerance, about so many evaluations long."""
    path = Path(Layout(z0))

    def counted(z: State, *rest: Tensor) -> State:
        path.calls += 1
        return model.iterate(z, *rest)

    def called(progress: Progress) -> bool:
        path(progress)
        look(progress.fz)
        return path.calls >= evaluations

    solve(counted, z0, args, solver, tol=NEVER, max_steps=evaluations, callback=called)
    return path


def solver_path(study: Study, exact: EquilibriumModel, solver: Solver[Any]) -> dict[str, Any]:
    """How the residuals of this solver fall from the model's own start, or do not."""
    problem = study.problem(exact, study.seeds(study.preset.paths))
    args = exact.embed(problem.noise, problem.label)
    try:
        path = follow(exact, args, problem.start, solver, study.preset.evaluations)
    except SolverError as error:
        return {"failed": str(error)}
    residual, size = torch.stack(path.residual), torch.stack(path.size)  # (T, B) each
    unit = path.layout.unknowns**0.5
    return {
        "evaluations": path.evaluations,
        **quantiles("relative", residual / size),
        **quantiles("absolute", residual / unit),
        **quantiles("size", size / unit),
        "reached": path.reached.double().mean(),
        "away": path.away.double().mean(),
    }


def quantiles(name: str, values: Tensor) -> dict[str, Tensor]:
    """Median and 90% of each row of (T, B)."""
    values = values.nan_to_num(torch.inf)
    shares = torch.tensor([0.5, 0.9], dtype=values.dtype)
    low, high = values.quantile(shares, dim=1)  # (T,) each
    return {name: low, f"{name}_90": high}


def start_paths(study: Study, exact: EquilibriumModel) -> dict[str, Any]:
    """By start: how images change with each evaluation, and how far apart they are from own's.

    The model's own solver; mean absolute differences of pixels in [-1, 1].
    """
    problem = study.problem(exact, study.seeds(study.preset.paths))
    args = exact.embed(problem.noise, problem.label)
    images: dict[str, list[Tensor]] = {}
    for start in dict.fromkeys(("own", *study.options.starts)):
        seen = images.setdefault(start, [])
        z0 = STARTS[start](exact, problem.noise, problem.start)
        look = lambda fz, seen=seen: seen.append(exact.decode((fz,))[0])  # noqa: E731
        follow(exact, args, z0, exact.deq.solver, study.preset.evaluations, look)
    return {
        start: {
            "change": [_apart(a, b) for a, b in pairwise(seen)],
            "apart": [_apart(a, b) for a, b in zip(seen, images["own"], strict=False)],
        }
        for start, seen in images.items()
    }


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())


def rate_steps(budget: int) -> int:
    """Plain iterations over whose last ten the rate is taken."""
    return max(budget, 12)


def spectrum(study: Study, exact: EquilibriumModel) -> dict[str, Any]:
    """Plain iteration: its rate early on, and the spectral radius where the model's budget ends.

    The rate tends to the radius only later.
    """
    problem: Problem = study.problem(exact, study.seeds(study.preset.paths))
    args = exact.embed(problem.noise, problem.label)
    steps = rate_steps(study.budget)
    traced = solve(
        exact.iterate, problem.start, args, Picard(), tol=NEVER, max_steps=steps, trace=True
    )
    assert traced.trace is not None
    answer = exact(
        problem.noise, problem.label, z0=problem.start, max_steps=study.budget
    ).equilibrium.z
    found = spectral_radius(exact.iterate, answer, args)
    rate = contraction_rate(traced.trace)
    return {
        "radius": found.radius.median(),
        "radius_max": found.radius.max(),
        "radius_error": found.error.max(),
        "rate": rate.median(),
        "rate_max": rate.max(),
    }


@torch.no_grad()
def measure_all(study: Study) -> dict[str, Any]:
    """All of it, by solver and by start."""
    exact = deepcopy(study.model).double().eval()
    solvers = {
        name: study.measured(f"equilibrium-{name}", lambda s=solver: solver_path(study, exact, s))
        for name, solver in study.solvers.items()
    }
    starts = study.measured(
        "starts-" + "-".join(study.options.starts), lambda: start_paths(study, exact)
    )
    return {
        "solvers": solvers,
        "starts": starts,
        "spectrum": study.measured("spectrum", lambda: spectrum(study, exact)),
    }
