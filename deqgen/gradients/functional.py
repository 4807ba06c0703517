"""The link of `adjoint.py` within torch.func, whose transforms keep graphs of their own.

There no tensor may begin a graph, so J^T v comes from :func:`torch.func.vjp`, and the function
behind f(z) is of the form that transforms accept. The evaluation is that of the forward pass here
too: by the backward pass :func:`torch.func.functional_call` has taken its parameters away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deqgen.gradients.product import Cotangent, Evaluation, Product
from deqgen.gradients.protocol import Cell, GradientError, State
from deqgen.gradients.refusal import NO_FUNC, Refusal
from deqgen.gradients.states import leaves, rebuild
from deqgen_solvers.autocast import Autocast


def in_transform() -> bool:
    """Whether a transform of torch.func is going on."""
    return torch._C._functorch.maybe_current_level() is not None


def differentiating() -> bool:
    """Whether the innermost transform of torch.func takes derivatives; vmap does not."""
    if not in_transform():
        return False
    inner = torch._C._functorch.peek_interpreter_stack()
    return inner is not None and inner.key() != torch._C._functorch.TransformType.Vmap


def attach_functional(
    f: Cell, z: State, args: tuple[Any, ...], respond: Callable[[Product, Cotangent], Cotangent]
) -> State:
    """Evaluate ``f(z, *args)``, with ``respond`` between it and the loss; as `adjoint.attach`.

    One derivative in reverse mode; a further one, or forward mode, raises :class:`GradientError`.
    """
    evaluation = _Pulled(f, z, [leaf.detach() for leaf in leaves(z)], args)

    def link(u: Cotangent) -> Cotangent:
        with torch.no_grad(), evaluation.autocast.off():
            return respond(Product(evaluation), u)

    linked = _Linked.apply(link, *evaluation.image)  # type: ignore[no-untyped-call]
    return rebuild(z, list(linked))


class _Pulled(Evaluation):
    """An evaluation whose graph is that of torch.func.vjp."""

    def __init__(self, f: Cell, like: State, points: list[Tensor], args: tuple[Any, ...]) -> None:
        self.f, self.like, self.points, self.args = f, like, points, args
        self.autocast = Autocast(points[0].device)

        def flat(*leaf: Tensor) -> tuple[Tensor, ...]:
            image = leaves(f(rebuild(like, list(leaf)), *args), like=like)
            return tuple(x.to(point.dtype) for x, point in zip(image, points, strict=True))

        pulled: Any = torch.func.vjp(flat, *points)
        self.image, self.pull = list(pulled[0]), pulled[1]

    def at(self, points: list[Tensor], args: tuple[Any, ...]) -> Evaluation:
        """The same cell elsewhere."""
        return _Pulled(self.f, self.like, points, args)

    def vjp(self, v: Cotangent) -> Cotangent:
        """J^T v."""
        pulled: Cotangent = self.pull(tuple(v))
        return pulled


class _Linked(Function):
    @staticmethod
    def forward(link: Any, *image: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaf.clone() for leaf in image)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.link = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        v = ctx.link(u)
        # v depends on u and, through J, on what the image depends on; neither was recorded.
        guarded = Refusal.apply(NO_FUNC, len(v), *v, *u, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, *guarded

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(NO_FUNC)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *_: Any) -> Any:
        raise GradientError(NO_FUNC)
