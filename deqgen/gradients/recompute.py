"""Evaluate a cell anew in a backward pass, and notice when it is not what it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from deqgen.gradients.protocol import GradientError, State
from deqgen.gradients.refusal import NO_FUNC_AGAIN
from deqgen.gradients.states import leaves
from deqgen_solvers.autocast import Autocast

_CAUSES = (
    "Likely causes: (a) its weights were changed in between, or were those of "
    "torch.func.functional_call, which are gone by then, (b) random numbers or other state. "
)
NOT_THE_SAME = (
    "the cell, evaluated anew in the backward pass, gave another image than before, so the "
    f"gradient would be wrong. {_CAUSES}Use an estimator that keeps its evaluation: Implicit(), "
    "Unrolled(steps) without checkpoint."
)
NOT_THE_SAME_ROWS = (
    "the cell, evaluated anew on part of the batch in the backward pass, gave another image than "
    f"before, so the gradient would be wrong. {_CAUSES}(c) a sample's image depends on the others. "
    "Use compact=False."
)


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


def checkpointed_and_checked(f: Callable[..., State], z: State, *args: Any) -> State:
    """:func:`checkpointed` ``f(z, *args)``; a backward pass that finds another image raises.

    It costs one synchronisation there, so an estimator asks for it once, and holds the image.
    """
    autocast = Autocast(leaves(z)[0].device)
    first: list[tuple[list[Tensor], list[int]]] = []

    def evaluate(z: State, *args: Any) -> State:
        image = f(z, *args)
        held = [leaf.detach() for leaf in leaves(image, like=z)]
        if not first:
            first.append((held, [_version(leaf) for leaf in held]))
        elif first[0][1] == [_version(leaf) for leaf in first[0][0]]:  # not changed in place since
            check_same(first[0][0], held, autocast, NOT_THE_SAME)
        return image

    if torch.compiler.is_compiling():
        return checkpointed(f, z, *args)
    with set_checkpoint_early_stop(False):  # else it would stop before the image is whole
        return checkpointed(evaluate, z, *args)


def check_same(before: list[Tensor], after: list[Tensor], autocast: Autocast, message: str) -> None:
    """Raise GradientError where images differ by more than the rounding of another batch size.

    That is some units in the last place; half of the digits leave room, and an error of that size
    is the most that passes. Rows that are not finite are not compared.
    """
    for old, new in zip(before, after, strict=True):
        dtype = autocast.dtype if autocast.active and autocast.dtype else old.dtype
        allowed = math.sqrt(torch.finfo(dtype).eps)
        difference = (new.detach() - old).abs().nan_to_num(0, 0, 0).amax()
        size = old.abs().nan_to_num(0, 0, 0).amax()
        if bool(difference > allowed * size):
            raise GradientError(message)


def _version(leaf: Tensor) -> int:
    return 0 if leaf.is_inference() else leaf._version
