"""Weights in parts: each process keeps some rows of every one (FSDP: Zhao et al. 2023, arXiv
2304.11277; by PyTorch's ``fully_shard``).

A tensor of which this process holds a part is a DTensor; all functions here but :func:`shard` let
plain tensors pass, so that their callers need not know. What the weights belong to is in parts as
well: gradients, the optimizer's state, the average. In a file everything is whole.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from deqgen.models.protocol import GenerativeModel


def shard(loss: nn.Module, device: torch.device) -> None:
    """Leave each process its part of every weight in ``loss``, a module that returns a loss.

    The stages of a model (:meth:`GenerativeModel.stages`) are made whole one at a time, as the pass
    forward and the pass back come to them. All other weights are made whole once, before the pass
    forward, and their gradients are added up once, after the pass back: the number of messages must
    be the same in all processes, and how often a cell is evaluated depends on a solve. They include
    those of a stage that has a weight in common with another module: it would be split in two.

    Raises:
        ValueError: a weight is a single number, or not contiguous in memory.
    """
    for name, weight in loss.named_parameters():
        if weight.ndim == 0 or not weight.is_contiguous():
            why = "is not contiguous in memory" if weight.ndim else "is a single number"
            raise ValueError(f"shard gives each process rows of every weight, and {name} {why}")
    uses = _uses(loss)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for module in list(loss.modules()):
        if isinstance(module, GenerativeModel):
            for stage in module.stages():
                if _uses(stage).items() <= uses.items():
                    fully_shard(stage, mesh=mesh)
    fully_shard(loss, mesh=mesh, reshard_after_forward=False)


def in_parts(module: nn.Module) -> bool:
    """Whether this process holds parts of the weights only."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; a change of it is one of the tensor."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


@torch.no_grad()
def clip_gradients(weights: Iterable[Tensor], limit: float | None) -> Tensor:
    """Scale gradients down to a 2-norm of ``limit``, over the parts of all processes.

    Returns:
        The norm before, a scalar, the same in all processes.
    """
    moved = [weight for weight in weights if weight.grad is not None]
    if not any(isinstance(weight, DTensor) for weight in moved):
        return nn.utils.clip_grad_norm_(moved, limit or math.inf)
    held = [local(weight.grad) for weight in moved if weight.grad is not None]
    square = torch.stack(torch._foreach_norm(held)).double().square().sum()
    distributed.all_reduce(square)
    norm = square.sqrt()
    if limit is not None:
        torch._foreach_mul_(held, (limit / (norm + 1e-6)).clamp(max=1.0).to(held[0].dtype))
    return norm


def gathered(tree: Any, keep: bool) -> Any:
    """Tensors in dicts and lists, whole; those that were in parts on the CPU.

    All processes call it; one that does not ``keep`` them gets None in place of each.
    """
    if isinstance(tree, DTensor):
        whole = _whole(tree)  # one at a time: there is room for one
        return whole.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {name: gathered(value, keep) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(value, keep) for value in tree)
    return tree


def whole_copy(module: nn.Module, *, keep: bool = True, on_cpu: bool = False) -> nn.Module:
    """A module whose weights are whole; the module itself if they are so already.

    All processes call it. A copy takes the memory of the whole weights for as long as it is held.

    Args:
        module: not one that :func:`shard` was given.
        keep: whether this process wants it; else it gets the module itself.
        on_cpu: put weights that were in parts there.
    """
    weights: dict[int, Any] = {}
    for weight in module.parameters():
        if isinstance(weight, DTensor):
            whole = _whole(weight)
            if keep:
                whole = whole.cpu() if on_cpu else whole
                weights[id(weight)] = nn.Parameter(whole, weight.requires_grad)
    return copy.deepcopy(module, weights) if weights else module


def share_out(module: nn.Module, like: nn.Module) -> None:
    """Leave this process the parts of a copy's weights that it has of the original's."""
    made: dict[int, nn.Parameter] = {}
    for own, original in zip(module.modules(), like.modules(), strict=True):
        for name, weight in list(own.named_parameters(recurse=False, remove_duplicate=False)):
            theirs = getattr(original, name)
            if isinstance(theirs, DTensor) and id(weight) not in made:
                mine = part(weight.detach(), theirs)
                made[id(weight)] = nn.Parameter(mine, weight.requires_grad)
            if id(weight) in made:  # those that were one stay one
                setattr(own, name, made[id(weight)])


def part(whole: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a whole tensor, in the dtype that it has."""
    if not isinstance(like, DTensor):
        return whole
    mesh = like.device_mesh
    rows = whole.chunk(mesh.size())  # as fully_shard does; fewer than processes if rows are few
    rank = mesh.get_local_rank()
    mine = rows[rank] if rank < len(rows) else whole[:0]
    return DTensor.from_local(
        mine.to(like.device, copy=True),  # the whole is to be let go
        mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def parts(whole: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """What ``module.load_state_dict`` takes, from whole tensors."""
    own: Mapping[str, Tensor] = module.state_dict()
    return {name: part(tensor, own.get(name)) for name, tensor in whole.items()}


def optimizer_parts(whole: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """What ``optimizer.load_state_dict`` takes, from a state of whole tensors."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbered: dict[int, Tensor] = dict(enumerate(weights))

    def fitted(value: Any, weight: Tensor | None) -> Any:
        alike = isinstance(value, Tensor) and weight is not None and value.shape == weight.shape
        return part(value, weight) if alike else value

    state = {
        index: {name: fitted(value, numbered.get(index)) for name, value in entries.items()}
        for index, entries in whole["state"].items()
    }
    return {**whole, "state": state}


def _uses(module: nn.Module) -> Counter[int]:
    """In how many places of a module each weight stands, by its id."""
    return Counter(id(weight) for _, weight in module.named_parameters(remove_duplicate=False))


def _whole(tensor: Tensor) -> Tensor:
    return cast(DTensor, tensor.detach()).full_tensor()
