"""Evaluate without keeping activations, and once more in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from deqgen.gradients.protocol import GradientError
from deqgen.gradients.refusal import NO_FUNC_AGAIN


def checkpointed(evaluate: Callable[..., Any], *args: Any) -> Any:
    """``evaluate(*args)``; autocast and random numbers are the same in the backward pass.

    Raises:
        GradientError: within the transforms of torch.func, which PyTorch does not let it work in.
    """
    try:
        return checkpoint(evaluate, *args, use_reentrant=False)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        raise GradientError(NO_FUNC_AGAIN) from error
