"""The images of a model's seeds, one batch at a time, and what they cost.

Letters: B images of a batch, C channels, H and W sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.label_policy import labels_for
from deqgen.models.protocol import GenerativeModel, Stopping
from deqgen.sampling import Batch, generate_batches
from deqgen.teachers.names import unknown
from deqgen_solvers import Solver, make_solver

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Solve:
    """How a model is run; the defaults are its own.

    Args:
        max_steps: most evaluations of the equilibrium's cell.
        solver: name or object.
        tol: where a sample's solve ends before that.
        precision: a name in ``PRECISIONS``; other than float32 it is autocast.

    Raises:
        ValueError: an unknown precision or solver, or ``max_steps`` below 1.
    """

    max_steps: int | None = None
    solver: str | Solver[Any] | None = None
    tol: Stopping = "model"
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.solver is not None:
            make_solver(self.solver)

    def described(self, model: GenerativeModel) -> dict[str, Any]:
        """The fields of a fingerprint, with the model's own values where nothing was asked."""
        layer = getattr(model, "deq", None)
        if layer is None:
            return {"precision": self.precision}
        budget = getattr(model.config, "max_steps", None)
        return {
            "precision": self.precision,
            "solver": repr(make_solver(layer.solver if self.solver is None else self.solver)),
            "max_steps": budget if self.max_steps is None else self.max_steps,
            "tol": str(layer.tol if self.tol == "model" else self.tol),
        }


@dataclass
class GeneratedImages:
    """Iterate over (B, C, H, W) float32 on the CPU, in the order of the seeds; once.

    Args:
        model: run where it is.
        seeds: one an image.
        labels: a policy that :func:`check_policy` has seen.
        solve: how the model is run.
        batch_size: images at a time.
        progress: show a progress bar.

    Attributes:
        evaluations: of the cell, of all images so far; one an image without an equilibrium.
    """

    model: GenerativeModel
    seeds: Sequence[int]
    labels: str | int | None
    solve: Solve
    batch_size: int
    progress: bool = False
    evaluations: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        batches = generate_batches(
            self.model,
            self.seeds,
            labels_for(self.labels, self.seeds, self.model.config),
            batch_size=self.batch_size,
            max_steps=self.solve.max_steps,
            tol=self.solve.tol,
            solver=self.solve.solver,
        )
        with tqdm(
            total=len(self.seeds), unit="image", disable=None if self.progress else True
        ) as bar:
            while (batch := self._next(batches)) is not None:
                _check_finite(batch.images, batch.seeds)
                spent = batch.evaluations
                self.evaluations += len(batch.images) if spent is None else int(spent.sum())
                yield batch.images
                bar.update(len(batch.images))

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; autocast is on while it is made and not while it is looked at."""
        dtype = PRECISIONS[self.solve.precision]
        kind = next(self.model.parameters()).device.type
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            return next(batches, None)


def _check_finite(images: Tensor, seeds: Sequence[int]) -> None:
    fine = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(fine.all()):
        first = int((~fine).nonzero()[0, 0])
        raise EvaluationInputError(
            f"the model's image of seed {seeds[first]} holds NaN or infinity, as do "
            f"{int((~fine).sum()) - 1} others of the {len(images)} in its batch"
        )
