"""A training step, bare and by the trainer: what the parts of this benchmark compare.

The batch is small for a training, so that a CPU takes seconds for a step. What is around the model
grows with the batch or does not; the model grows with it: in a larger batch the shares are smaller.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pairs_write import Instant
from torch import Tensor, nn

from deqgen.data import PairDataset, write_pairs
from deqgen.models import GeneratorOutput, create_model
from deqgen.training.config import TrainConfig
from deqgen.training.distillation import Distillation
from deqgen.training.distributed import make_accelerator
from deqgen.training.interrupt import StopRequest
from deqgen.training.losses import TrajectoryLoss
from deqgen.training.run import Run

MODEL, BATCH, PAIRS = "GET-T/2", 16, 4096


class Free(nn.Module):
    """A model that costs nothing: what a step takes with it, a step takes without a model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, noise: Tensor, label: Tensor, **options: object) -> GeneratorOutput:
        """Noise (B, C, H, W) and label (B,) to images (B, C, H, W)."""
        image = noise * self.weight  # (B, C, H, W)
        return GeneratorOutput(image, (image,), None)


class Bare:
    """Forward, loss, backward, clipping and AdamW on one batch in memory, and nothing else."""

    def __init__(self, pairs: PairDataset) -> None:
        self.model = student()
        self.batch = pairs.__getitems__(list(range(BATCH)))
        self.loss, self.generator = TrajectoryLoss(), torch.Generator()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=0.0)

    def __call__(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        output = self.model(self.batch["noise"], self.batch["label"], generator=self.generator)
        loss = self.loss(output.images, self.batch["image"])  # scalar
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()


class Trained:
    """The same step by the trainer, which reads its batch from disk and writes a row of numbers."""

    def __init__(self, model: nn.Module, pairs: PairDataset, folder: Path) -> None:
        config = TrainConfig(images=10**9, batch_size=BATCH, clip_norm=1.0, log_images=BATCH)
        self.run = Run(model, Distillation(pairs), config, folder, make_accelerator(config))
        self.stop = StopRequest()

    def __call__(self) -> None:
        """Take a step and log it."""
        self.run.step(self.stop)
        self.run.log()


def student() -> nn.Module:
    """The model in training, of ten classes."""
    return create_model(MODEL, num_classes=10).train()


def make_pairs(folder: Path) -> PairDataset:
    """Pairs on disk, whose images do not matter."""
    write_pairs(Instant(), folder / "pairs", count=PAIRS)
    return PairDataset(folder / "pairs")
