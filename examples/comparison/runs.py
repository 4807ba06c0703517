"""One training of scaling.py with its measurements, and what a step costs in time and memory.

Letters: B samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from comparison.plan import CLASSES, COMPARED, GET, SNAPSHOTS, Plan, Training, training_flops
from deqgen import generate
from deqgen.data import PairDataset
from deqgen.evaluation import evaluate
from deqgen.gradients import Unrolled
from deqgen.models import save_model
from deqgen.models.protocol import GenerativeModel
from deqgen.training import Distillation, Hook, Moment, TrajectoryLoss, read_stats, train

SAMPLING_BATCH = 128
MEASURED = ("fd_cifar10", "inception_style_score", "accuracy", "pair_l1")
CHECKPOINTED = "GET, checkpointed"


class FirstPairs(Distillation):
    """Distillation of the first ``count`` pairs of a folder: small sets lie within large ones."""

    def __init__(self, pairs: PairDataset, count: int) -> None:
        super().__init__(pairs)
        self.count = count

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Bench:
    """What all students are trained on and measured with.

    Args:
        plan: how much of everything.
        pairs: the folder; its last ``plan.held_out`` pairs are not trained on.
        precision: of the matrix products.
    """

    plan: Plan
    pairs: PairDataset
    precision: str

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")

    @cached_property
    def held_out(self) -> Mapping[str, Tensor]:
        count = len(self.pairs)
        return self.pairs.__getitems__(range(count - self.plan.held_out, count))

    @torch.no_grad()
    def quality(self, model: GenerativeModel, max_steps: int | None = None) -> dict[str, float]:
        """Measure images of the seeds from 0 on, and the distance to the teacher's images."""
        labels = torch.arange(self.plan.evaluate) % CLASSES
        options: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
        with self.autocast():
            images = generate(
                model, range(len(labels)), labels, batch_size=SAMPLING_BATCH, **options
            )
            distances, residuals = [], []
            for part in torch.arange(self.plan.held_out).split(SAMPLING_BATCH):
                out = model(
                    self.held_out["noise"][part],
                    self.held_out["label"][part],
                    **options,
                )
                error = (out.image.float() - self.held_out["image"][part]).abs()  # (B, C, H, W)
                distances.append(error.flatten(1).mean(1))
                if out.equilibrium is not None:
                    residuals.append(out.equilibrium.solution.residual.float())
        report = {**evaluate(images, labels).to_dict(), "pair_l1": _mean(distances)}
        found = {name: float(cast(float, report[name])) for name in MEASURED}
        return {**found, "residual": _mean(residuals)} if residuals else found

    def teacher(self) -> dict[str, Any]:
        """The teacher's own images, as many and of as many of each class."""
        made = self.pairs.__getitems__(range(self.plan.evaluate))
        report = evaluate(made["image"], made["label"])
        return {"name": self.pairs.manifest.settings["teacher"]["name"], **report.to_dict()}

    def train(self, training: Training, folder: Path) -> dict[str, Any]:
        """Train a student, measuring its average on the way, or go on with that."""
        plan, student = self.plan, self.plan.students[training.student]
        model = student.build(training.seed)
        config = replace(
            plan.recipe,
            images=plan.images,
            learning_rate=plan.learning_rates[student.model],
            seed=training.seed,
            precision=self.precision,
        )
        eighth = plan.images // 8

        def look(moment: Moment) -> Mapping[str, float] | None:
            if moment.images // eighth not in SNAPSHOTS:
                return None
            return self.quality(cast(GenerativeModel, moment.model))

        trained = train(
            model,
            FirstPairs(self.pairs, training.pairs),
            config,
            folder,
            hooks=[Hook(eighth, look)],
            title=training.name,
        )
        average = cast(GenerativeModel, trained.ema)
        parameters, gmacs = student.cost
        rows = read_stats(folder / "stats.jsonl")
        result = {
            "student": training.student,
            "pairs": training.pairs,
            "seed": training.seed,
            "parameters": parameters,
            "gmacs": gmacs,
            "images": trained.images,
            "training_l1": trained.loss / TrajectoryLoss().total_weight(_states(model)),
            "seconds": trained.seconds,
            "curve": [
                {**row, "flops": training_flops(gmacs, row["images"])}
                for row in rows
                if "fd_cifar10" in row
            ],
            "test_time": self.test_time(training, average),
        }
        save_model(average, folder / "student.safetensors")
        return result

    def test_time(self, training: Training, model: GenerativeModel) -> list[dict[str, float]]:
        """Quality at other numbers of iterations than trained; of the GET that is compared."""
        if training.student != GET or training.pairs != self.plan.most_pairs:
            return []
        return [{"max_steps": n, **self.quality(model, n)} for n in self.plan.budgets]

    def costs(self) -> dict[str, Any]:
        """Time and memory of a training step and of sampling, on one core, by student.

        Time is that of the processor: the median over rounds in which the students take turns.
        """
        steps = {name: self._steps(name) for name in (*COMPARED, CHECKPOINTED)}
        spent: dict[str, dict[str, list[float]]] = {
            name: {kind: [] for kind in kinds} for name, kinds in steps.items()
        }
        for _ in range(self.plan.rounds + 1):  # the first one warms up
            for name, kinds in steps.items():
                for kind, step in kinds.items():
                    start = time.process_time()
                    step()
                    spent[name][kind].append(time.process_time() - start)
        batch = self.plan.recipe.batch_size
        return {
            name: {
                "training_ms": 1e3 * median(seconds["training"][1:]) / batch,
                "sampling_ms": 1e3 * median(seconds["sampling"][1:]) / batch,
                "activations_mib": peak_bytes(steps[name]["training"]) / 2**20,
                "state_mib": 20 * self._cost(name)[0] / 2**20,
            }
            for name, seconds in spent.items()
        }

    def _cost(self, name: str) -> tuple[int, float]:
        return self.plan.students[GET if name == CHECKPOINTED else name].cost

    def _steps(self, name: str) -> dict[str, Callable[[], object]]:
        """A training step without the optimizer's, and one batch of samples."""
        model = self.plan.students[GET if name == CHECKPOINTED else name].build().train()
        if name == CHECKPOINTED:
            cast(Any, model).deq.gradient = Unrolled(checkpoint=True)
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)  # counted in "state_mib"
        objective = FirstPairs(self.pairs, self.plan.recipe.batch_size)
        batch: NDArray[Any] = np.arange(len(objective))

        def training() -> None:
            model.train()
            with self.autocast():
                loss = objective.loss(model, batch, torch.Generator().manual_seed(0))
            loss.backward()

        def sampling() -> Tensor:
            with self.autocast():
                return generate(model, range(len(batch)), 0, batch_size=len(batch))

        return {"training": training, "sampling": sampling}


def peak_bytes(step: Callable[[], object]) -> int:
    """What PyTorch's allocator holds at the peak of ``step`` beyond what it held before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    recorded = cast(Any, profiler.profiler).kineto_results.events()
    changes = [event for event in recorded if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda change: change.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _states(model: GenerativeModel) -> int:
    """Images that the loss looks at."""
    return int(getattr(model.config, "max_steps", 1))


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).mean())
