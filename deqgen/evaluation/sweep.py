"""Quality against compute: a row for each solver and budget, measured on ranges of seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from deqgen.evaluation.features import FeatureNetwork
from deqgen.evaluation.frechet import Reference
from deqgen.evaluation.generated import Solve
from deqgen.evaluation.label_policy import check_policy
from deqgen.evaluation.model_evaluation import (
    DEFAULT_METRICS,
    check_request,
    check_seeds,
    evaluate_model,
    open_both,
)
from deqgen.evaluation.result import ENOUGH, Evaluation
from deqgen.models.protocol import GenerativeModel, Stopping
from deqgen.processes import Processes
from deqgen_solvers import Solver


class Spread(NamedTuple):
    """A number over repeats. Published FIDs are often the least of three."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True)
class SweepRow:
    """A setting and its evaluations, one a range of seeds.

    Attributes:
        solver: as it was asked for; None for the model's own.
        max_steps: as it was asked for; None for the model's own.
        evaluations: one for each repeat.
    """

    solver: str | None
    max_steps: int | None
    evaluations: tuple[Evaluation, ...]

    @property
    def spread(self) -> Mapping[str, Spread]:
        """Each metric over the repeats."""
        found = [evaluation.metrics for evaluation in self.evaluations]
        columns = {name: [metrics[name] for metrics in found] for name in found[0]}
        return {name: Spread(min(c), fmean(c), max(c)) for name, c in columns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "solver": self.solver,
            "max_steps": self.max_steps,
            "spread": {name: spread._asdict() for name, spread in self.spread.items()},
            "evaluations": [evaluation.to_dict() for evaluation in self.evaluations],
        }


def sweep_model(
    model: GenerativeModel,
    features: FeatureNetwork | str | Path = "cifar10",
    reference: Reference | str | Path = "cifar10",
    count: int = ENOUGH,
    *,
    solvers: Sequence[str | Solver[Any] | None] = (None,),
    max_steps: Sequence[int | None] = (None,),
    repeats: int = 1,
    seed_start: int = 0,
    labels: str | int | Sequence[int] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    tol: Stopping = "model",
    batch_size: int = 256,
    precision: str = "float32",
    progress: bool = False,
    after_row: Callable[[Sequence[SweepRow]], None] | None = None,
    **marks: Any,
) -> list[SweepRow]:
    """Evaluate a model with every solver and budget.

    Args:
        model: as for :func:`evaluate_model`, like what follows.
        features: opened once, like the reference.
        reference: of the same network.
        count: images of each evaluation.
        solvers: names or objects.
        max_steps: budgets; every one with every solver.
        repeats: evaluations of each, on ranges of seeds that share none: repeat r starts at
            ``seed_start + r * count``. Every setting sees the same seeds.
        seed_start: the first seed of the first repeat.
        labels, metrics, tol, batch_size, precision, progress: as for :func:`evaluate_model`.
        after_row: called with the rows so far whenever there is one more, to save them: a sweep may
            take days, and what fails late should not take the rest with it.
        marks: its ``name``, ``weights`` and ``processes``.

    Raises:
        ValueError: ``repeats`` below 1, and as :func:`evaluate_model`; every setting is checked
            before the first is measured.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    asked = check_request(metrics, count, batch_size)
    check_seeds(seed_start, repeats * count)
    check_policy(labels, model.config)
    settings = list(product(solvers, max_steps))
    for solver, budget in settings:
        Solve(max_steps=budget, solver=solver, tol=tol, precision=precision).check(model)
    place = next(model.parameters()).device
    together = marks.get("processes") or Processes(0, 1, place)
    network, held = open_both(features, reference, asked, place, progress, together)
    rows: list[SweepRow] = []
    for solver, budget in settings:
        found = [
            evaluate_model(
                model,
                network,
                held,
                count,
                seed_start=seed_start + repeat * count,
                labels=labels,
                metrics=asked,
                max_steps=budget,
                solver=solver,
                tol=tol,
                batch_size=batch_size,
                precision=precision,
                progress=progress,
                **marks,
            )
            for repeat in range(repeats)
        ]
        name = solver if solver is None or isinstance(solver, str) else repr(solver)
        rows.append(SweepRow(name, budget, tuple(found)))
        if after_row is not None:
            after_row(rows)
    return rows
