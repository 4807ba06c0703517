"""Processes: how they start, and what each is given.

``torchrun --nproc-per-node N`` starts N of them, on one machine or many; so does ``accelerate
launch``, except that on a CPU it starts one, whatever it is told. Each holds the whole model, and
gradients are averaged by DDP. The folder of the run must be one that all of them see.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deqgen.training.config import TrainConfig
from deqgen.training.trackers import check_trackers, start_trackers

STRATEGIES = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
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
        ValueError: several processes were started and do not know of each other, or weights would
            be sharded.
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
    for name in STRATEGIES:
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(
                f"this trainer does not run under {name}: each process holds the whole model "
                f"(DDP); launch it without ACCELERATE_USE_{name}"
            )


def data_parallel(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model, whose gradients several processes average; all start from the first's weights.

    It is wrapped here and not by ``accelerator.prepare``, which would keep it, and the buffers of
    its gradients, for as long as the accelerator lives, and change its ``forward`` for good. As
    with any use of DDP, every weight that is trained has to take part in the loss.

    Raises:
        ValueError: the model is on another device than the process.
    """
    if accelerator.num_processes == 1:
        return model
    device = next(model.parameters()).device
    on_cpu = device.type == accelerator.device.type == "cpu"  # which accelerate calls cpu:0
    if device != accelerator.device and not on_cpu:
        raise ValueError(
            f"the model is on {device}, and process {accelerator.process_index} trains on "
            f"{accelerator.device}; move it there (accelerator.device)"
        )
    return DistributedDataParallel(model, device_ids=None if on_cpu else [device.index])


def without_sync(model: nn.Module, apart: bool) -> AbstractContextManager[Any]:
    """A block whose gradients stay in this process, if ``apart`` and there are others."""
    if apart and isinstance(model, DistributedDataParallel):
        return cast("AbstractContextManager[Any]", model.no_sync())
    return nullcontext()


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the first one's buffers, such as BatchNorm's running averages."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def total(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum over the processes."""
    if accelerator.num_processes == 1:
        return values
    return cast(Tensor, accelerator.reduce(values, "sum"))
