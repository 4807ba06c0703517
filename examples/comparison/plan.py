"""What scaling.py trains: students of matched sizes, how many pairs, which seeds, what it costs.

The sizes stand around one small GET. A ViT of equal parameters, one of equal multiply-adds and one
of five times the parameters are all within 5% of what their names say (a test counts them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from deqgen import create_model
from deqgen.models.cost import multiply_adds
from deqgen.models.protocol import GenerativeModel, parameter_count
from deqgen.training import TrainConfig
from distillation.presets import SHORT

SHAPE = (3, 32, 32)  # what fd_cifar10 looks at
CLASSES = 10
SNAPSHOTS = (1, 2, 4, 8)  # eighths of a training after which the average is measured

GET, GET_HALF, GET_WIDE = "GET", "GET, half width", "GET, 1.5 times the width"
VIT_PARAMETERS, VIT_FLOPS = "ViT, equal parameters", "ViT, equal FLOPs"
VIT_FIVE = "ViT, 5x parameters"
COMPARED = (GET, VIT_PARAMETERS, VIT_FLOPS, VIT_FIVE)

# Core seconds an image, and more for each GMAC: of a training step, and of generating an image and
# looking at it. Measured on one core of an AMD EPYC, with bfloat16 in hardware.
TRAINING = 0.8e-3, 55e-3
MEASURING = 6e-3, 8e-3


def training_flops(gmacs: float, images: float) -> float:
    """Two operations a multiply-add, and a backward pass counts as two forward ones."""
    return 3 * 2e9 * gmacs * images


@dataclass(frozen=True)
class Student:
    """A size of model.

    Args:
        model: "GET" or "ViT".
        options: for ``create_model``.
    """

    model: str
    options: Mapping[str, Any]

    def build(self, seed: int = 0) -> GenerativeModel:
        return create_model(
            self.model,
            image_size=SHAPE[1],
            num_classes=CLASSES,
            generator=torch.Generator().manual_seed(seed),
            **self.options,
        )

    @cached_property
    def cost(self) -> tuple[int, float]:
        """Trained parameters, and GMACs an image, all iterations and decoded states counted."""
        with torch.device("meta"):
            model = self.build().train()
            inputs = torch.empty(1, *SHAPE), torch.zeros(1, dtype=torch.int64)
        return parameter_count(model, trainable_only=True), multiply_adds(model, *inputs) / 1e9


@dataclass(frozen=True)
class Training:
    """One student on the first ``pairs`` pairs; ``seed`` is of its weights and of its order."""

    student: str
    pairs: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        words = self.student.replace(",", "").replace(".", "_").lower().split()
        return "-".join([*words, f"{self.pairs}pairs", f"seed{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything.

    Args:
        students: by title.
        trainings: in the order in which they are done, the most telling first.
        learning_rates: peak rate by architecture.
        images: length of each training, whatever the number of pairs; a multiple of 8 batches.
        evaluate: seeds that the quality is measured on, none of them trained on.
        held_out: pairs at the end of the folder, for the distance to the teacher's images.
        budgets: evaluations of the equilibrium's cell that GET is also sampled with.
        rounds: of the measurement of time.
        recipe: of all trainings; images, rate, seed and precision are those of each.
    """

    students: Mapping[str, Student]
    trainings: tuple[Training, ...]
    learning_rates: Mapping[str, float]
    images: int
    evaluate: int
    held_out: int
    budgets: tuple[int, ...]
    rounds: int
    recipe: TrainConfig = field(repr=False)

    @property
    def most_pairs(self) -> int:
        return max(training.pairs for training in self.trainings)

    def describe(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)

    def core_seconds(self, training: Training) -> float:
        """What a training should take with its measurements."""
        _, gmacs = self.students[training.student].cost
        iterated = training.student == GET and training.pairs == self.most_pairs
        looks = len(SNAPSHOTS) + iterated * len(self.budgets)
        return sum(
            images * (fixed + slope * gmacs)
            for images, (fixed, slope) in (
                (self.images, TRAINING),
                (looks * self.evaluate, MEASURING),
            )
        )


def get(width: int, heads: int, patch: int = 4) -> Student:
    """A GET of one injection block and one equilibrium block, as GET-N has them."""
    shape = {"patch_size": patch, "width": width, "heads": heads}
    return Student("GET", {**shape, "depth": 1, "deq_depth": 1, "deq_mlp_ratio": 4.0})


def vit(width: int, heads: int, depth: int, patch: int = 4) -> Student:
    return Student("ViT", {"patch_size": patch, "width": width, "heads": heads, "depth": depth})


def matrix(
    sizes: tuple[int, int, int], seeds: int, widths: tuple[str, ...]
) -> tuple[Training, ...]:
    """All trainings: four students on the most pairs, two on fewer, other widths for the fit."""
    few, some, many = sizes
    pair = GET, VIT_FLOPS
    first = [Training(name, many, 0) for name in COMPARED]
    first += [Training(name, size, 0) for size in (few, some) for name in pair]
    first += [Training(name, many, 0) for name in widths]
    again = [
        Training(name, size, seed)
        for seed in range(1, seeds)
        for size, names in ((many, COMPARED), (few, pair))
        for name in names
    ]
    return (*first, *again)


# The recipe of the demo: at its constant rate, and with its average, a share of a run is a run of
# that length, so that one training gives a whole curve of quality against compute.
RECIPE = replace(SHORT, save_images=8_192, keep_checkpoints=1, log_images=4_096)

PLANS = {
    "cpu": Plan(
        students={
            GET: get(128, 4),
            VIT_PARAMETERS: vit(136, 4, 2),
            VIT_FLOPS: vit(144, 4, 6),
            VIT_FIVE: vit(144, 4, 9),
            GET_HALF: get(64, 2),
            GET_WIDE: get(192, 3),  # GET-N/4
        },
        trainings=matrix((5_000, 20_000, 80_000), 3, (GET_HALF, GET_WIDE)),
        # Short trainings need more than the published 1e-4. One seed, 12,288 images of 2,688 pairs,
        # with rates of 1e-3, 2e-3 and 4e-3 (fd_cifar10; L1; loss without the average, at the end):
        #   GET                 74.3, 73.5, 68.7;  0.230, 0.216, 0.212;  0.874, 0.831, 0.844
        #   ViT of equal FLOPs  80.0, 76.3, 75.7;  0.201, 0.196, 0.201;  0.207, 0.208, 0.220
        # 2e-3 is between what the loss and what fd_cifar10 prefer, and a longer run wants no more
        # than a shorter one. It cost GET 4.8 of fd_cifar10 there, and the ViT 0.6.
        learning_rates={"GET": 2e-3, "ViT": 2e-3},
        images=98_304,
        evaluate=3_072,
        held_out=1_024,
        budgets=(1, 2, 3, 4, 6, 8, 12, 24),
        rounds=7,
        recipe=RECIPE,
    ),
    "smoke": Plan(
        students={
            GET: get(24, 2, patch=8),
            VIT_PARAMETERS: vit(24, 2, 2, patch=8),
            VIT_FLOPS: vit(24, 2, 6, patch=8),
            VIT_FIVE: vit(32, 2, 8, patch=8),
            GET_HALF: get(12, 1, patch=8),
        },
        trainings=matrix((8, 16, 24), 1, (GET_HALF,)),
        learning_rates={"GET": 1e-3, "ViT": 1e-3},
        images=64,
        evaluate=8,
        held_out=8,
        budgets=(1, 6, 12),
        rounds=1,
        recipe=replace(RECIPE, batch_size=8, warmup_images=8, save_images=16, log_images=16),
    ),
}
