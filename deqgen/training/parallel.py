"""How processes share the work of a step: one loss, whose gradients they average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from deqgen.training.objective import Objective
from deqgen.training.sharding import in_parts, shard


class ObjectiveLoss(nn.Module):
    """An objective and its model as one module that returns the loss.

    DDP and FSDP wrap this and not the model. They want to come before the first use of a weight
    and after the last, whatever an objective does with its model, and find gradients through what
    is returned, where a model returns structures that they may not know.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._loss = objective.loss  # the method: if the objective is a module, it is no part

    def forward(self, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        """The loss of examples ``indices`` (B,), a scalar."""
        return self._loss(self.model, indices, generator)


def begin_alike(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the first one's weights and buffers.

    Raises:
        ValueError: the model is on another device than the process, or not the others'; or its
            weights are in parts.
    """
    if in_parts(model):
        raise ValueError(
            "a training with shard=True has left this process a part of the model's weights only; "
            "begin with a new model, into which its checkpoint can be loaded"
        )
    if accelerator.num_processes == 1:
        return
    device = next(model.parameters()).device
    if device != accelerator.device and not _on_cpu(model, accelerator):
        raise ValueError(
            f"the model is on {device}, and process {accelerator.process_index} trains on "
            f"{accelerator.device}; move it there (accelerator.device)"
        )
    tensors = dict(model.named_parameters()), dict(model.named_buffers())
    shapes = [(name, *tensor.shape) for group in tensors for name, tensor in group.items()]
    if any(other != shapes for other in gather_object([shapes])):
        raise ValueError("the processes of a run need the same model, and theirs differ")
    for group in tensors:
        spread(group.values(), accelerator)


def in_parallel(loss: ObjectiveLoss, accelerator: Accelerator, *, sharded: bool) -> nn.Module:
    """The loss, whose gradients several processes average.

    It is wrapped here and not by ``accelerator.prepare``, which would keep it, and the buffers of
    its gradients, for as long as the accelerator lives, and change its ``forward`` for good. As
    with any use of DDP, every weight that is trained has to take part in the loss.

    Args:
        loss: of a model with the same weights in every process.
        accelerator: of this process.
        sharded: leave each process its part of the weights only, in place.
    """
    if accelerator.num_processes == 1:
        return loss
    if sharded:
        shard(loss, accelerator.device)
        return loss
    on_cpu = _on_cpu(loss, accelerator)
    device = next(loss.parameters()).device
    return DistributedDataParallel(loss, device_ids=None if on_cpu else [device.index])


@contextmanager
def without_sync(loss: nn.Module, apart: bool) -> Iterator[None]:
    """A block whose gradients stay in this process, if ``apart`` and there are others."""
    if apart and isinstance(loss, DistributedDataParallel):
        with loss.no_sync():
            yield
    elif apart and isinstance(loss, FSDPModule):
        loss.set_requires_gradient_sync(False)
        yield
        loss.set_requires_gradient_sync(True)
    else:
        yield


def spread(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Give all processes the first one's numbers, in place."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            distributed.broadcast(sent, 0)
            tensor.detach().copy_(sent)  # nothing to do unless it is laid out otherwise


def moving_buffers(model: nn.Module) -> set[str]:
    """Names of what a forward pass may change, and a checkpoint holds: BatchNorm's averages."""
    return model.state_dict().keys() & dict(model.named_buffers()).keys()


def total(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum over the processes."""
    if accelerator.num_processes == 1:
        return values
    return cast(Tensor, accelerator.reduce(values, "sum"))


def _on_cpu(module: nn.Module, accelerator: Accelerator) -> bool:
    """Accelerate calls it cpu:0."""
    return {next(module.parameters()).device.type, accelerator.device.type} == {"cpu"}
