"""The training loop, written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from deqgen.training.config import TrainConfig
from deqgen.training.distributed import check_processes, make_accelerator
from deqgen.training.hooks import Hook
from deqgen.training.interrupt import Interrupted, StopRequest
from deqgen.training.objective import Objective
from deqgen.training.run import Run


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves, the same in every process.

    Attributes:
        ema: the averaged model, float32, in evaluation mode.
        images: images seen.
        loss: mean loss of the last row of the statistics.
        seconds: training time over all sessions of the run.
    """

    ema: nn.Module
    images: int
    loss: float
    seconds: float


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    directory: str | Path,
    *,
    accelerator: Accelerator | None = None,
    hooks: Sequence[Hook] = (),
    title: str = "train",
    progress: bool = True,
) -> TrainResult:
    """Train ``model`` in place, or go on where an earlier call with this directory stopped.

    A run that is stopped and continued takes the same steps, bit for bit on one machine, as one
    that is not: order and random numbers depend on the seed, the step and the part alone, and the
    checkpoint holds the rest, the global random numbers of every process included. Of the objective
    it knows the number of examples only: to go on with another loss or other data of that number
    is not noticed here.

    Started by torchrun or ``accelerate launch``, all processes call it with the same arguments and
    share the work of every step; with one ``config.microbatch``, N of them train as one does, but
    for rounding.

    Args:
        model: in float32, on its device; with several processes, on ``accelerator.device``. With
            ``config.shard`` a process is left with its part of the weights in it, so that what
            goes on from there is the result's ``ema``, or the checkpoint.
        objective: gives the loss of a batch.
        config: see :class:`TrainConfig`.
        directory: holds ``checkpoints`` and ``stats.jsonl``.
        accelerator: from :func:`make_accelerator`, which is called without trackers by default.
        hooks: what else to do now and then; see :class:`Hook`.
        title: text before the progress bar.
        progress: show the bar, in the first process.

    Raises:
        CheckpointError: all checkpoints are damaged, or they are of a run with other settings.
        TrainingDiverged: a loss or gradient is not finite, in any process. ``directory/nonfinite``
            then holds the examples of the batch and the state before the step.
        Interrupted: SIGINT or SIGTERM came, to any process; a checkpoint was written first, unless
            there was no step since the last.
        OSError: a checkpoint or the statistics could not be written; the checkpoint before is
            whole.
        ValueError: the objective has no examples, the batch cannot be cut for these processes, or
            they do not know of each other.
        Exception: of a hook in any process, in every process.
    """
    if len(objective) == 0:
        raise ValueError("there is nothing to train on: the objective has no examples")
    accelerator = accelerator or make_accelerator(config)
    check_processes(accelerator)
    with StopRequest() as stop:  # from here on: reading a checkpoint may take long
        run = Run(model, objective, config, Path(directory), accelerator)
        bar = tqdm(
            total=config.steps * config.batch_size,
            initial=min(run.images, config.steps * config.batch_size),
            desc=title,
            unit="image",
            disable=not (progress and accelerator.is_main_process),
            mininterval=1.0,
        )
        with bar:
            signals = _heard(run, stop) or _loop(run, stop, hooks, bar)
    if signals:
        kept = f"the checkpoint is in {directory}" if run.images else "there is no checkpoint yet"
        raise Interrupted(f"stopped after {run.images} images; {kept}", max(signals))
    return TrainResult(run.whole_ema(), run.images, run.last_loss, run.seconds)


def _loop(run: Run, stop: StopRequest, hooks: Sequence[Hook], bar: tqdm[Any]) -> list[int]:
    """All steps that are left, or those before a signal; return the signals of all processes."""
    config = run.config
    run.call(hooks)  # those that a stop came between
    while not (run.finished or run.signal):
        run.step(stop)
        bar.update(config.batch_size)
        if run.due(config.log_images):
            bar.set_postfix_str(f"loss {run.log():.4f}", refresh=False)
        if run.due(config.save_images) or run.signal:
            run.save()
        if not run.signal:
            run.call(hooks)
    return _heard(run, stop)  # one that came after the last step was not heard of in it


def _heard(run: Run, stop: StopRequest) -> list[int]:
    """The signals that any process has received."""
    return [number for number in gather_object([run.signal or stop.signal]) if number]
