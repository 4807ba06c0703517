"""Estimators of the gradient beside exact ones, and what a training step costs: ablate_solvers.py.

What an estimator should be compared with depends on what the model computes. Where there is an
equilibrium, that is its gradient by implicit differentiation, both solves to the last digits. A
model that is trained on its trajectory may have none; then the honest reference is the gradient of
what it does compute: as many plain iterations as its budget, unrolled. Both are taken, on the same
loss: the mean L1 distance of the last image to the teacher's. As a yardstick the gradient of as
many other images is measured too; but that error averages out over the steps of a training, and
what an estimator leaves out does not.

Everything is in float64 but the costs, which are those of a step in float32.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ablation.equilibrium import AWAY
from ablation.study import NEVER, Problem, Study
from deqgen.atomic import replacing
from deqgen.gradients import (
    JFB,
    SHINE,
    Equilibrium,
    EquilibriumWarning,
    GradientError,
    GradientEstimator,
    Implicit,
    Phantom,
    Reversible,
    StochasticJFB,
    Unrolled,
    available_gradients,
    make_gradient,
)
from deqgen.memory import peak_memory
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.solvers import Anderson, Broyden, Solver, SolverError, Tolerance
from deqgen.teachers import Teacher, load_teacher
from deqgen.teachers.names import unknown
from deqgen.training import TrajectoryLoss
from deqgen_solvers.state import Layout

ROUNDS = 3
TIGHT, LONG = Tolerance(atol=0.0, rtol=1e-11), 500


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to estimate a gradient after k evaluations of the cell."""

    estimator: Callable[[int], GradientEstimator]
    solver: Callable[[int], Solver[Any]] | None = None  # the model's own
    loss: TrajectoryLoss = TrajectoryLoss(weights="last")  # noqa: RUF009 - it has no state
    fits: Callable[[int], bool] = lambda k: True  # whether it can spend k evaluations
    draws: int = 1  # of an estimator that draws at random, averaged


def _stochastic(k: int) -> StochasticJFB:
    recorded = max(1, k // 2)  # at most; and k evaluations at most in all
    return StochasticJFB(no_grad=(0, k - recorded), grad=(1, recorded))


RECIPES: dict[str, Recipe] = {
    # `every` leaves out the states that the loss does not look at.
    "unrolled": Recipe(estimator=lambda k: Unrolled(k, every=k)),
    "checkpointed": Recipe(estimator=lambda k: Unrolled(k, every=k, checkpoint=True)),
    "trajectory": Recipe(estimator=Unrolled, loss=TrajectoryLoss()),  # the published GET's
    "reversible": Recipe(estimator=lambda k: Reversible(k // 2), fits=lambda k: k % 2 == 0),
    "implicit": Recipe(estimator=lambda k: Implicit(tol=None, max_steps=k)),
    "phantom": Recipe(estimator=lambda k: Phantom(5, 0.5)),
    "neumann": Recipe(estimator=lambda k: Phantom(5, 0.5, "neumann")),
    "jfb": Recipe(estimator=lambda k: JFB()),
    "shine": Recipe(estimator=lambda k: SHINE(), solver=lambda k: Broyden(memory=max(1, k - 1))),
    "stochastic-jfb": Recipe(estimator=_stochastic, draws=4),
}


class _Missed(Exception):
    """A solve did not meet the tolerance that an exact gradient needs."""


def _require(met: bool) -> None:
    if not met:
        raise _Missed


EXACT = Recipe(
    estimator=lambda _: Implicit(
        tol=Tolerance(atol=0.0, rtol=1e-9),
        max_steps=LONG,
        callback=lambda solution: _require(bool(solution.converged.all())),
    )
)


def recipe(name: str) -> Recipe:
    """By name; an estimator that somebody registered comes with its defaults."""
    if name in RECIPES:
        return RECIPES[name]
    allowed = sorted({*RECIPES, *available_gradients()})
    if name not in allowed:
        raise ValueError(unknown("gradient estimator", name, allowed))
    return Recipe(estimator=lambda _: make_gradient(name))


@dataclass(frozen=True)
class Gradient:
    """A gradient with respect to all weights, of the mean loss of some images."""

    vector: Tensor  # float64

    def beside(self, other: Gradient | None) -> dict[str, float | None]:
        """Relative error and cosine, if there is something to compare with."""
        if other is None:
            return {"error": None, "cosine": None}
        return {
            "error": float((self.vector - other.vector).norm() / other.vector.norm()),
            "cosine": float(torch.cosine_similarity(self.vector, other.vector, dim=0)),
        }


class Gradients:
    """The gradients of a study's loss.

    Raises:
        ValueError: an unknown estimator, or a teacher that makes other images than the model.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.size = study, study.preset.images
        self.recipes = {name: recipe(name) for name in study.options.gradients or RECIPES}
        self.teacher = open_teacher(study)
        self.exact = deepcopy(study.model).double().train()
        self.single = deepcopy(study.model).train()

    @cached_property
    def given(self) -> tuple[Problem, Tensor]:
        """Twice as many images as the loss is about; the others are the yardstick."""
        seeds = self.study.seeds(2 * self.size)
        return self.study.problem(self.exact, seeds), self._targets(seeds)

    @cached_property
    def unrolled(self) -> Gradient:
        """That of the model's budget of plain iterations."""
        return self.of(RECIPES["unrolled"], self.study.budget)

    @cached_property
    def equilibrium(self) -> Gradient | None:
        """That of the fixed point; None where some sample has none that is found."""
        try:
            return self.of(EXACT, LONG, tol=TIGHT, solver=Anderson(memory=10))
        except _Missed:
            return None

    def of(
        self,
        made: Recipe,
        k: int,
        *,
        others: bool = False,
        moved: bool = False,
        tol: Tolerance = NEVER,
        solver: Solver[Any] | None = None,
    ) -> Gradient:
        """The gradient; of the ``others``, or from the others' starts (``moved``).

        Raises:
            _Missed: a tolerance was not met, or only by a state that ran away.
        """
        problem, target = self.given
        pieces = list(problem.parts(self.size))
        (part, chosen), (_, rest) = (pieces[others], pieces[not others])
        chosen = replace(chosen, start=rest.start) if moved else chosen
        self.exact.zero_grad(set_to_none=True)
        self.exact.deq.gradient = made.estimator(k)
        for piece, few in list(chosen.parts(self.study.preset.step)) * made.draws:
            loss, equilibrium = run(self.exact, made, k, few, target[part][piece], tol, solver)
            if tol is not NEVER:
                here = _size(equilibrium.z) <= AWAY * _size(few.start)  # (B,)
                _require(bool((equilibrium.solution.converged & here).all()))
            (loss * (len(few.noise) / self.size / made.draws)).backward()
        return Gradient(_flat(self.exact))

    def reference(self) -> dict[str, Any]:
        """How far apart the references are from each other, and from those of other images."""
        exact, made, k = self.equilibrium, RECIPES["unrolled"], self.study.budget
        found: dict[str, Any] = {
            "budget": k,
            "equilibrium": exact is not None,
            "between": self.unrolled.beside(exact),
            "other images": self.of(made, k, others=True).beside(self.unrolled),
            "other starts": self.of(made, k, moved=True).beside(self.unrolled),
        }
        return found

    def measure(self, name: str, k: int) -> dict[str, Any]:
        """A row of the table."""
        made = self.recipes[name]
        row = {"estimator": name, "budget": k}
        try:
            gradient = self.of(made, k)
            costs = self.costs(made, k)
        except (GradientError, SolverError) as error:  # the others go on
            return {**row, "failed": str(error)}
        return {
            **row,
            "unrolled": gradient.beside(self.unrolled),
            "equilibrium": gradient.beside(self.equilibrium),
            **costs,
        }

    def costs(self, made: Recipe, k: int) -> dict[str, float]:
        """Seconds and peak MiB an image, forward and backward; weights, their gradients not."""
        seeds = self.study.seeds(self.study.preset.step)
        problem, target = self.study.problem(self.single, seeds), self._targets(seeds)
        self.single.deq.gradient = made.estimator(k)
        times = []

        def step() -> None:
            began = self.study.clock()
            run(self.single, made, k, problem, target, NEVER, None)[0].backward()
            times.append(self.study.clock() - began)

        step()  # first calls are slow, and make the gradients
        peak = max(peak_memory(step, self.study.device) for _ in range(made.draws))
        times.clear()
        for _ in range(ROUNDS * made.draws):
            step()
        middle = statistics.median if made.draws == 1 else statistics.fmean
        return {"seconds": middle(times) / len(seeds), "peak_mib": peak / len(seeds) / 2**20}

    def measure_all(self) -> dict[str, Any]:
        """All of it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquilibriumWarning)  # a budget is all they get
            reference = self.study.measured("gradient-reference", self.reference)
            rows = [
                self.study.measured(f"gradient-{name}-{k}", lambda n=name, k=k: self.measure(n, k))
                for name, made in self.recipes.items()
                for k in self.study.preset.gradient_budgets
                if made.fits(k)
            ]
        return {"reference": reference, "rows": rows}

    def _targets(self, seeds: range) -> Tensor:
        """The teacher's images for these seeds, made once; the first of those there are."""
        path = self.study.folder / "targets.safetensors"
        if not path.exists():
            whole = self.study.problem(self.study.model, self.study.seeds(2 * self.size))
            pieces = [part for _, part in whole.parts(self.study.options.batch_size)]
            images = torch.cat([self.teacher.sample(p.noise, p.label) for p in pieces])
            with replacing(path) as partial:
                save_file({"images": images.float().cpu().contiguous()}, partial)
        return load_file(path)["images"][: len(seeds)].to(self.study.device)


def run(
    model: EquilibriumModel,
    made: Recipe,
    k: int,
    problem: Problem,
    target: Tensor,
    tol: Tolerance,
    solver: Solver[Any] | None,
) -> tuple[Tensor, Equilibrium]:
    """The loss of a model in training mode, with k evaluations of the cell: a mean distance."""
    solver = made.solver(k) if made.solver is not None else solver
    out = model(problem.noise, problem.label, z0=problem.start, max_steps=k, tol=tol, solver=solver)
    loss = made.loss(out.images, target) / made.loss.total_weight(len(out.images))
    return loss, out.equilibrium


def open_teacher(study: Study) -> Teacher:
    """The teacher, if it makes the images that the model makes."""
    teacher = load_teacher(study.options.teacher, device=study.device)
    config = study.model.config
    if config.num_classes is None:
        teacher = teacher.unconditional()
    made = teacher.image_shape, teacher.num_classes
    if made != (config.image_shape, config.num_classes or 0):
        raise ValueError(
            f"teacher {teacher.name!r} makes images {made[0]} in {made[1]} classes, and the model "
            f"makes {config.image_shape} in {config.num_classes or 0}: give its own with --teacher,"
            " or leave the part gradients out"
        )
    return teacher


def _flat(model: EquilibriumModel) -> Tensor:
    weights = [p for p in model.parameters() if p.requires_grad]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    return torch.cat([part.flatten() for part in parts])


def _size(state: Any) -> Tensor:
    """(B,) Euclidean norms."""
    return torch.linalg.vector_norm(Layout(state).flatten(state).detach(), dim=1)
