"""Derivatives that an estimator cannot give raise a sentence, never a wrong number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deqgen.gradients.protocol import GradientError

NO_FURTHER = (
    "a derivative beyond order {order} was taken through an equilibrium whose backward pass was "
    "solved, not recorded, so it would be wrong. Use gradient=Implicit(order=...) for a double "
    "backward (gradient penalties, Hessian products), or Unrolled(steps)."
)

NO_FORWARD = (
    "forward-mode differentiation through this estimator is not available; use "
    "gradient=Implicit(), or Unrolled(steps), which autograd follows step by step."
)

NO_FUNC = (
    "torch.func takes one reverse-mode derivative (grad, vjp) of an equilibrium whose backward "
    "pass is solved, and no other. Use torch.autograd (jacobian, hessian, forward_ad), or "
    "gradient=Unrolled(steps)."
)

NO_FUNC_AGAIN = (
    "torch.func cannot differentiate an estimator that evaluates the cell anew in its backward "
    "pass. Use torch.autograd (jacobian, hessian, forward_ad), or gradient=Unrolled(steps) without "
    "checkpoint."
)

NO_MIXED = (
    "a forward-mode derivative was taken of a backward pass through an equilibrium, which was "
    "solved, not recorded, so it would be wrong. Use gradient=Implicit(order=2) and reverse mode "
    "twice, or Unrolled(steps)."
)


NO_BATCH = (
    "derivatives of an equilibrium whose backward pass is solved are taken one at a time: without "
    "vectorize=True, is_grads_batched=True or vmap over them. Or use gradient=Unrolled(steps)."
)


def refuse(
    message: str, tensors: tuple[Tensor, ...], anchors: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """Return ``tensors`` such that a derivative taken through them raises ``message``.

    ``anchors`` are what the true derivative would flow to: autograd visits a function only if it
    lies on the way to an input, so the refusal must lie on the way to each of them.
    """
    alive = [a for a in anchors if isinstance(a, Tensor) and a.requires_grad]
    if not alive or not torch.is_grad_enabled():
        return tensors
    refused: tuple[Tensor, ...] = Refusal.apply(  # type: ignore[no-untyped-call]
        message, len(tensors), *tensors, *alive
    )
    return refused


class Refusal(Function):
    """(message, count, count tensors, anchors) to these tensors; no derivative, of any kind."""

    @staticmethod
    def forward(message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise GradientError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(ctx.message)

    @staticmethod
    def vmap(info: Any, in_dims: Any, message: str, *_: Any) -> Any:
        raise GradientError(message)
