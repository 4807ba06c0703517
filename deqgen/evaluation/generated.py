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
from deqgen.evaluation.label_policy import Policy, labels_for
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.models.protocol import GenerativeModel, Stopping
from deqgen.sampling import Batch, generate_batches
from deqgen.teachers.names import unknown
from deqgen_solvers import Solver, make_solver

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Solve:
    """How a model is run; the defaults are its own.

    Args:
        max_steps: most evaluations of the equilibrium's cell, but for those within a step.
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

    def check(self, model: GenerativeModel) -> None:
        """Refuse a model that cannot be run so.

        Raises:
            ValueError: it is a denoiser; or it has no equilibrium, and something is asked of one.
        """
        if model.takes_noise_level:
            raise ValueError(
                f"this {model.architecture} is a denoiser, which takes noise levels: a sampler of "
                "deqgen.teachers turns noise into images with it (deqgen.models.ModelDenoiser)"
            )
        options = {"max_steps": self.max_steps, "solver": self.solver}
        asked = [name for name, value in options.items() if value is not None]
        asked += ["tol"] if self.tol != "model" else []
        if asked and not isinstance(model, EquilibriumModel):
            raise ValueError(
                f"this {model.architecture} has no equilibrium to solve: leave out "
                f"{', '.join(asked)}"
            )

    def batches(
        self,
        model: GenerativeModel,
        seeds: Sequence[int],
        labels: Policy,
        batch_size: int,
        least: int = 1,
    ) -> Iterator[Batch]:
        """The images of seeds, batch by batch.

        Args:
            model: run where it is.
            seeds: one an image.
            labels: a policy that :func:`check_policy` has seen.
            batch_size, least: as for :func:`deqgen.sampling.generate_batches`.

        Raises:
            ValueError: as :meth:`check`.
            EvaluationInputError: an image holds NaN or infinity; its seed is named.
        """
        self.check(model)
        batches = generate_batches(
            model,
            seeds,
            labels_for(labels, seeds, model.config),
            batch_size=batch_size,
            least=least,
            max_steps=self.max_steps,
            tol=self.tol,
            solver=self.solver,
        )
        kind, dtype = next(model.parameters()).device.type, PRECISIONS[self.precision]
        while True:
            # On while a batch is made, and not while it is looked at.
            with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                batch = next(batches, None)
            if batch is None:
                return
            _check_finite(batch.images, batch.seeds)
            yield batch

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
    """Iterate over (B, 3, H, W) float32 on the CPU, in the order of the seeds; once.

    Grey images (C = 1) are repeated in all three colours, as files of them are.

    Args:
        model: run where it is.
        seeds: one an image.
        labels: a policy that :func:`check_policy` has seen.
        solve: how the model is run.
        batch_size: images at a time.
        progress: show a progress bar.

    Attributes:
        evaluations: of the cell, of all images so far; one an image without an equilibrium.

    Raises:
        ValueError: as :meth:`Solve.check`.
    """

    model: GenerativeModel
    seeds: Sequence[int]
    labels: Policy
    solve: Solve
    batch_size: int
    progress: bool = False
    evaluations: int = 0

    def __post_init__(self) -> None:
        self.solve.check(self.model)

    def __iter__(self) -> Iterator[Tensor]:
        hidden = None if self.progress else True  # None: where nobody looks
        with tqdm(total=len(self.seeds), unit="image", disable=hidden) as bar:
            for batch in self.solve.batches(self.model, self.seeds, self.labels, self.batch_size):
                count, spent = len(batch.images), batch.evaluations
                self.evaluations += count if spent is None else int(spent.sum())
                grey = batch.images.shape[1] == 1
                yield batch.images.expand(-1, 3, -1, -1) if grey else batch.images  # (B, C, H, W)
                bar.update(count)


def _check_finite(images: Tensor, seeds: Sequence[int]) -> None:
    fine = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(fine.all()):
        first = int((~fine).nonzero()[0, 0])
        raise EvaluationInputError(
            f"the model's image of seed {seeds[first]} holds NaN or infinity, as do "
            f"{int((~fine).sum()) - 1} others of the {len(images)} in its batch"
        )
