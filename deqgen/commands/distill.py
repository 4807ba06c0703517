"""Train a student on noise/image pairs."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from deqgen.commands.distill_options import LookOptions, LossOptions, RunOptions, StudentOptions
from deqgen.training.config import TrainConfig


def distill(
    pairs: Annotated[str, arg(metavar="PAIRS")],
    /,
    student: Annotated[StudentOptions, OmitArgPrefixes],
    training: Annotated[TrainConfig, OmitArgPrefixes],
    loss: Annotated[LossOptions, OmitArgPrefixes],
    look: Annotated[LookOptions, OmitArgPrefixes],
    run: Annotated[RunOptions, OmitArgPrefixes],
) -> None:
    """Train a one-pass model on noise/image pairs. Interrupted, the same command goes on.

    With several GPUs: torchrun --standalone --nproc_per_node=N -m deqgen distill PAIRS ...

    Durations are in training images: examples seen, repeats counted.

    Args:
        pairs: The folder that `deqgen pairs make` filled, or an fsspec path to one.
    """
    from deqgen.commands.distill_job import Job, carry_out

    carry_out(Job(pairs, student, training, loss, look, run))
