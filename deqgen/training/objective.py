"""The interface of what a training minimises."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Objective(Protocol):
    """What to minimise over a set of examples."""

    def __len__(self) -> int:
        """Number of examples."""

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        """Return the scalar loss of examples ``indices`` ``(B,)``, drawing from ``generator``.

        It is a mean over the examples: the loss of a batch that is cut into parts is the mean of
        theirs. With several processes every trained weight has to take part in it, and with
        ``config.shard`` the weights of a model's stages are whole only while these are called.
        """
