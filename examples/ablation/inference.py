"""Solver, start and budget against residual, quality, time and memory: see ablate_solvers.py.

Within a solve of many steps lie those of fewer: after k evaluations a solver has not been told yet
how many there will be. So each solver solves once a batch, and is looked at on its way.

Letters: B samples of a batch, N unknowns of a sample, C channels, H and W sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ablation.study import NEVER, STARTS, Problem, Study
from deqgen.data.images import to_float, to_uint8
from deqgen.evaluation import evaluate
from deqgen.gradients import State
from deqgen.memory import peak_memory
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.solvers import Progress, Solver, SolverError, solve
from deqgen_solvers.state import Layout

MEASURED = (3, 32, 32)  # the images that the embedded classifier knows
SCORES = ("fd_cifar10", "inception_style_score", "accuracy")
WEIGHED = 16  # images that the peak of memory is that of


@dataclass
class Spent:
    """What one budget has come to, over all batches."""

    images: list[Tensor] = field(default_factory=list)  # (B, C, H, W) bytes, of the best iterate
    last: list[Tensor] = field(default_factory=list)  # (B, C, H, W) bytes, of the last one
    early: int = 0  # samples whose best iterate is not the last one
    relative: list[Tensor] = field(default_factory=list)  # (B,) ||f(z) - z|| / ||f(z)||
    absolute: list[Tensor] = field(default_factory=list)  # (B,) ||f(z) - z|| / sqrt(N)
    size: list[Tensor] = field(default_factory=list)  # (B,) ||f(z)|| / sqrt(N)
    lost: int = 0  # images that are not finite
    evaluations: int = 0  # summed over batches, like what follows
    steps: int = 0
    seconds: float = 0.0


class Looks:
    """A callback that at each budget takes down what a solve of that budget would return."""

    def __init__(
        self,
        model: EquilibriumModel,
        start: State,
        budgets: dict[int, Spent],
        clock: Callable[[], float],
    ) -> None:
        self.model, self.clock, self.layout = model, clock, Layout(start)
        self.budgets = budgets
        self.waiting = sorted(budgets)
        self.calls = self.steps = self.seen = 0
        self.best: Tensor | None = None  # (B, N), f(z) of the best iterate
        self.last: Tensor | None = None  # (B, N), f(z) of the last one
        self.early = torch.zeros(self.layout.rows, dtype=torch.bool)  # (B,)
        self.residual = torch.full((self.layout.rows,), torch.inf, dtype=torch.float64)  # (B,)
        self.working = 0.0  # seconds, without those in here
        self.since = clock()

    def counted(self, z: State, *args: Tensor) -> State:
        """The cell, with its calls counted: a solver may call it within a step."""
        self.calls += 1
        return self.model.iterate(z, *args)

    def __call__(self, progress: Progress) -> bool:
        self.working += self.clock() - self.since
        self._look(self.calls - 1)  # budgets that this step went past
        self.seen, self.steps = self.calls, progress.step
        self._keep(progress)
        self._look(self.calls)
        self.since = self.clock()
        return not self.waiting

    def finish(self) -> None:
        """Of a solve that ended early, the budgets that it did not spend."""
        self._look(max(self.budgets))

    def _keep(self, progress: Progress) -> None:
        image = self.layout.flatten(progress.fz)  # (B, N)
        level = progress.residual  # (B,)
        assert level is not None
        better = level < self.residual  # NaN is not
        self.residual = torch.where(better, level, self.residual)
        self.last = image.clone()
        chosen = better.to(image.device).unsqueeze(1)  # (B, 1)
        self.best = self.last if self.best is None else torch.where(chosen, image, self.best)
        self.early = ~better

    def _decode(self, flat: Tensor) -> Tensor:
        return self.model.decode((self.layout.unflatten(flat),))[0]  # (B, C, H, W)

    def _look(self, calls: int) -> None:
        """Take down the budgets up to ``calls``."""
        while self.waiting and self.waiting[0] <= calls:
            spent = self.budgets[self.waiting.pop(0)]
            assert self.best is not None and self.last is not None
            began = self.clock()
            image = self._decode(self.best)  # (B, C, H, W)
            spent.seconds += self.working + self.clock() - began
            last = self._decode(self.last) if bool(self.early.any()) else image
            finite = (image.isfinite() & last.isfinite()).flatten(1).all(dim=1)  # (B,)
            spent.lost += int((~finite).sum())
            spent.early += int(self.early.sum())
            spent.images.append(to_uint8(image.nan_to_num()).cpu())
            spent.last.append(to_uint8(last.nan_to_num()).cpu())
            size = torch.linalg.vector_norm(self.best.double(), dim=1).cpu()  # (B,)
            spent.relative.append(self.residual / size)
            spent.absolute.append(self.residual / self.layout.unknowns**0.5)
            spent.size.append(size / self.layout.unknowns**0.5)
            spent.evaluations += self.seen
            spent.steps += self.steps


@torch.no_grad()
def follow(study: Study, solver: Solver[Any], start: str, problem: Problem, into: Any) -> None:
    """One batch: solve it with the largest budget."""
    model, began = study.model, study.clock()
    args = model.embed(problem.noise, problem.label)
    z0 = STARTS[start](model, problem.noise, problem.start)
    looks = Looks(model, z0, into, study.clock)
    looks.working = looks.since - began
    steps = max(into) - 1  # f is evaluated at z0 first
    solve(looks.counted, z0, args, solver, tol=NEVER, max_steps=steps, callback=looks)
    looks.finish()


def measure(study: Study, name: str, start: str) -> list[dict[str, Any]]:
    """A row for each budget of this solver from this start."""
    count, size = study.preset.count, study.options.batch_size
    into = {budget: Spent() for budget in study.preset.budgets}
    seeds = study.seeds(count)
    batches = [seeds[at : at + size] for at in range(0, count, size)]
    try:
        few = study.problem(study.model, seeds[:2])  # first calls are slow, and not measured
        follow(study, study.solvers[name], start, few, {max(into): Spent()})
        for batch in batches:
            problem = study.problem(study.model, batch)
            follow(study, study.solvers[name], start, problem, into)
        return [
            {
                "solver": name,
                "start": start,
                "budget": budget,
                "evaluations": spent.evaluations / len(batches),
                **spread("relative", spent.relative),
                **spread("absolute", spent.absolute),
                **spread("size", spent.size),
                "early": spent.early / count,
                "lost": spent.lost / count,
                **quality(study, spent),
                "seconds": spent.seconds / count,
                "peak_mib": memory(study, name, start, round(spent.steps / len(batches))),
            }
            for budget, spent in into.items()
        ]
    except SolverError as error:  # such as no forward mode: the others go on
        return [{"solver": name, "start": start, "failed": str(error)}]


def spread(name: str, found: list[Tensor]) -> dict[str, float]:
    """Median, and what nine of ten samples stay below."""
    values = torch.cat(found).nan_to_num(torch.inf)  # a sample whose first image is not finite
    low, high = values.quantile(torch.tensor([0.5, 0.9], dtype=values.dtype)).tolist()
    return {name: low, f"{name}_90": high}


def quality(study: Study, spent: Spent) -> dict[str, float | None]:
    """What the embedded classifier says of the images, if it knows their kind.

    Also of those of the last iterates, in place of the best: without an equilibrium a residual says
    little, and the best iterate may be one of the first.
    """
    if study.model.config.image_shape != MEASURED or spent.lost:
        return dict.fromkeys((*SCORES, "fd_cifar10_last"))
    best = judge(study, spent.images)
    last = judge(study, spent.last) if spent.early else best
    return {**best, "fd_cifar10_last": last["fd_cifar10"]}


def judge(study: Study, images: list[Tensor]) -> dict[str, float | None]:
    whole = to_float(torch.cat(images))  # (N, C, H, W)
    classes = study.model.config.num_classes
    labels = torch.tensor(study.seeds(len(whole))) % classes if classes == 10 else None
    report = evaluate(whole.to(study.device), labels)
    return {name: getattr(report, name) for name in SCORES}


@torch.no_grad()
def memory(study: Study, name: str, start: str, steps: int) -> float:
    """MiB an image at the peak of a solve of so many steps, decoded; weights do not count."""
    images = min(WEIGHED, study.preset.count)
    problem = study.problem(study.model, study.seeds(images))
    z0 = STARTS[start](study.model, problem.noise, problem.start)
    run = partial(
        study.model,
        problem.noise,
        problem.label,
        z0=z0,
        max_steps=steps + 1,
        tol=NEVER,
        solver=study.solvers[name],
    )
    return peak_memory(run, study.device) / images / 2**20


def measure_all(study: Study) -> list[dict[str, Any]]:
    """A row for each solver, start and budget."""
    return [
        row
        for start in study.options.starts
        for name in study.options.solvers
        for row in study.measured(
            f"inference-{name}-{start}", lambda n=name, s=start: measure(study, n, s)
        )
    ]


@torch.no_grad()
def samples(study: Study, count: int = 10) -> dict[str, Tensor]:
    """The same images at every other budget, by the model's own solver."""
    problem = study.problem(study.model, study.seeds(count))
    looks = {budget: Spent() for budget in study.preset.budgets[::2]}
    follow(study, study.model.deq.solver, "own", problem, looks)
    return {f"{budget}": to_float(spent.images[0]) for budget, spent in looks.items()}
