"""What a run leaves behind when a number is no longer finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from deqgen.training.checkpoint import CheckpointError, Checkpoints
from deqgen.training.order import Part
from deqgen.training.run_folder import write_json
from deqgen.training.stepper import Outcome

FOLDER = "nonfinite"
BATCH = "batch.json"


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is not finite. No step was taken; the checkpoints are as they were."""


def gather_batch(parts: Sequence[tuple[Part, Tensor]], accelerator: Accelerator) -> list[Any]:
    """Examples and loss of every part of a step, for each process: JSON data."""
    mine = [
        {"part": part.number, "loss": str(float(loss)), "indices": part.indices.tolist()}
        for part, loss in parts
    ]
    return list(gather_object([{"rank": accelerator.process_index, "parts": mine}]))


def write_batch(folder: Path, images: int, outcome: Outcome, ranks: Sequence[Any]) -> None:
    """Write the examples of the step after ``images`` images to ``folder/batch.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"loss": str(outcome.loss), "gradient_norm": str(outcome.gradient_norm)}
    write_json(folder / BATCH, {"images": images, **numbers, "ranks": list(ranks)})


def last_checkpoint(checkpoints: Checkpoints) -> str:
    """Say in a sentence where one could go on."""
    try:
        path = checkpoints.newest()
    except (CheckpointError, OSError) as error:
        return f"There is no checkpoint to go on from: {error}."
    return f"The last checkpoint is {path}." if path else "There is no checkpoint yet."


def explain(images: int, outcome: Outcome, rate: float, where: str, last: str) -> str:
    """Say in a few sentences what happened, why that may be, and where to look."""
    return (
        f"after {images} images the loss is {outcome.loss} and the gradient norm "
        f"{outcome.gradient_norm}; no step was taken. {where} Causes: (a) the learning rate "
        f"{rate:g} is too high, (b) an example is not finite, (c) the precision is too low. {last}"
    )
