"""Checkpoints in the format of locuslab/get, made here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqgen.models import GenerativeModel
from tests.models.test_behaviour import small

# What their training script leaves in `args`, as far as it concerns the model, and some more.
ARGS: dict[str, Any] = {
    "model": "GET-toy",
    "input_size": 8,
    "num_classes": 5,
    "name": "debug",
    "lr": 1e-4,
    "ema_decay": 0.9999,
    "resume": None,
    "mem": False,
    "grad": [6],
    "f_solver": "fixed_point_iter",
    "eval_f_max_iter": 6,
}


def entries(model: GenerativeModel, **args: Any) -> dict[str, Any]:
    """The dict of a checkpoint after one step: the average differs from the trained weights."""
    trained = {name: tensor + 0.5 for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
    optimizer.step()
    cond = model.config.num_classes is not None
    return {
        "args": Namespace(**{**ARGS, "cond": cond, **args}),
        "model": trained,
        "ema": model.state_dict(),
        "opt": optimizer.state_dict(),
    }


def write(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def checkpoint(
    path: Path,
    name: str = "GET",
    change: Callable[[dict[str, Any]], object] = lambda content: None,
    **sizes: Any,
) -> Path:
    """A toy checkpoint, after ``change`` has been at its dict."""
    content = entries(small(name, **sizes))
    content["args"].model = f"{name}-toy"
    change(content)
    return write(path, content)


def renamed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
