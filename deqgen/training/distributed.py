"""Processes: how they start, and what each is given.

``torchrun --nproc-per-node N`` starts N of them, on one machine or many; so does ``accelerate
launch``, except that on a CPU it starts one, whatever it is told. What they then do together is in
:mod:`deqgen.training.parallel`. The folder of the run must be one that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from deqgen.training.config import TrainConfig
from deqgen.training.trackers import check_trackers, start_trackers

# What accelerate launch can ask for, and what there is in its place.
STRATEGIES = {
    "FSDP": "sharding is a setting of the run here: --shard, or TrainConfig(shard=True)",
    "DEEPSPEED": "what there is, is DDP, and sharding with --shard, or TrainConfig(shard=True)",
    "MEGATRON_LM": "what there is, is DDP, and sharding with --shard, or TrainConfig(shard=True)",
}
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# A hook may keep one process busy for hours while the others wait. When a process dies, torchrun
# ends the others; this limit is not needed for that.
LONGEST_WAIT = timedelta(days=2)


def make_accelerator(
    config: TrainConfig, *, trackers: Sequence[str] = (), directory: str | Path | None = None
) -> Accelerator:
    """Join the other processes, if there are any, and start the trackers.

    It runs on the GPU of this process, or on the CPU where there is none (then over gloo). The
    precision is the configuration's: the trainer sets it around the loss, not around the model.

    Args:
        config: of the run.
        trackers: ``"tensorboard"``, ``"wandb"``.
        directory: of the run; TensorBoard's files go to ``directory/tensorboard``.

    Raises:
        ValueError: an unknown tracker, or a launch that this trainer cannot serve.
        ImportError: a tracker is not installed.
    """
    if trackers and directory is None:
        raise ValueError("trackers need the directory of the run")
    check_trackers(trackers)
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", MIXED_PRECISION[config.precision]):
        raise ValueError(
            f"accelerate was launched with mixed precision {launched}, and the configuration says "
            f"precision {config.precision!r}; leave one of them out"
        )
    _refuse_strategies()
    folder = Path(directory or ".")
    accelerator = Accelerator(
        # Without this, processes that torchrun starts on a CPU do not find each other.
        cpu=not torch.cuda.is_available(),
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder / "tensorboard")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    check_processes(accelerator)
    if trackers:
        start_trackers(accelerator, config, folder)
    return accelerator


def check_processes(accelerator: Accelerator) -> None:
    """Refuse an accelerator that would train something else than was asked for.

    Raises:
        ValueError: several processes were started and do not know of each other, or accelerate was
            told to distribute the model.
    """
    _refuse_strategies()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started (WORLD_SIZE), but this one is in a group of "
            f"{accelerator.num_processes}: each would train alone, into the same files. On a CPU, "
            "accelerate needs Accelerator(cpu=True); make_accelerator sees to that"
        )


def _refuse_strategies() -> None:
    for name, instead in STRATEGIES.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(
                f"this trainer does not run under accelerate's {name}; launch it without "
                f"ACCELERATE_USE_{name}: {instead}"
            )
