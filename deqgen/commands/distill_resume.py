"""Which run ``deqgen distill`` goes on with, and whether it can; nothing is written here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deqgen.training.checkpoint import STATE, CheckpointError, Checkpoints, load_checkpoint
from deqgen.training.config import TrainConfig
from deqgen.training.environment import read_sessions
from deqgen.training.run_folder import (
    RunFolderError,
    check_run,
    read_config,
    unfinished_run,
)
from deqgen.training.same_run import MAY_CHANGE, differences, identity

# Sections of the configuration, or parts of them, that do not decide what is trained. Weights of a
# perceptual distance count by their content.
FREE = (
    "run",
    "look",
    "training.shard",
    "pairs.folder",
    "loss.perceptual_vgg",
    "loss.perceptual_heads",
)
PARTS = "training.microbatch"


def earlier_run(
    resume: str, outdir: Path, config: Mapping[str, Any], training: TrainConfig, processes: int
) -> Path | None:
    """The folder of the run to go on with; None to begin a new one.

    Args:
        resume: ``"auto"``, ``"never"`` or a path.
        outdir: where ``"auto"`` looks.
        config: as ``config.json`` has it.
        training: as the user gave it: its microbatch may be None.
        processes: how many train now.

    Raises:
        RunFolderError: the folder that was named is of another configuration, or of no run.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return unfinished_run(outdir, config, free=FREE)
    folder = Path(resume)
    changeable = MAY_CHANGE - ({"images"} if training.decay == "cosine" else set())
    free = (*FREE, *(f"training.{name}" for name in changeable))
    try:
        check_run(folder, config, free=free)
    except RunFolderError:
        if training.microbatch is None:
            check_run(folder, config, free=(*free, PARTS))  # more differs: the first error stands
            raise RunFolderError(_other_parts(folder, training, processes)) from None
        raise
    return folder


def left_aside(
    outdir: Path, config: Mapping[str, Any], training: TrainConfig, processes: int
) -> str | None:
    """What to say of an unfinished run that would go on with another number of processes."""
    if training.microbatch is not None:
        return None
    folder = unfinished_run(outdir, config, free=(*FREE, PARTS))
    return None if folder is None else f"{_other_parts(folder, training, processes)}."


def _other_parts(folder: Path, training: TrainConfig, processes: int) -> str:
    """That a run cuts its batch otherwise than so many processes do, and what to do about it."""
    size, batch = read_config(folder).get("training", {}).get("microbatch"), training.batch_size
    if not isinstance(size, int) or size < 1 or batch % size:
        return f"{folder} was begun by an earlier release, which did not say its microbatch"
    sessions = read_sessions(folder)
    begun = sessions[0].get("processes") if sessions else None
    who = f"was begun by {_counted(begun)}" if isinstance(begun, int) else "was begun"
    ways = [f"start {batch // size}"]
    if batch % (size * processes) == 0:
        ways.insert(0, f"give --microbatch {size}")
    return (
        f"{folder} {who} with parts of {size} images, and {_counted(processes)} would cut the "
        f"batch of {batch} into parts of {batch // processes}; to go on with it, "
        f"{', or '.join(ways)}"
    )


def _counted(processes: int) -> str:
    return f"{processes} process" if processes == 1 else f"{processes} processes"


def check_checkpoint(folder: Path, training: TrainConfig, parts: int, examples: int) -> None:
    """Refuse what the training would refuse, while the folder is still as it was.

    Raises:
        CheckpointError: all checkpoints are damaged, or the newest is of other settings.
        RunFolderError: the run is longer already than it is to be.
    """
    checkpoints = Checkpoints(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training warns of what is damaged
            newest = checkpoints.newest()
            state = load_checkpoint(newest / STATE) if newest else {}
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or begin a new run with --resume never") from None
    if newest is None:
        return
    done = int(newest.name)
    if done > training.steps * training.batch_size:
        raise RunFolderError(
            f"{folder} has learned from {done:,} images already, more than --images "
            f"{training.images}; give at least {done}, or begin a new run with --resume never"
        )
    if found := differences(state.get("run", {}), identity(training, parts, examples)):
        raise CheckpointError(
            f"the checkpoint {newest} is of a run with other settings ({'; '.join(found)}); begin "
            "a new run with --resume never"
        )
