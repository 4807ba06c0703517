"""The link of `adjoint.py` within torch.func, whose transforms keep graphs of their own.

There no tensor may begin a graph, so J^T v comes from :func:`torch.func.vjp`, evaluated in the
backward pass, and the function behind f(z) is of the form that transforms accept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deqgen.gradients.product import Cotangent, Evaluation, Product
from deqgen.gradients.protocol import Cell, GradientError, State
from deqgen.gradients.refusal import NO_FUNC
from deqgen.gradients.states import leaves, rebuild
from deqgen_solvers.autocast import Autocast
from deqgen_solvers.state import map_tensors, take_rows


def in_transform() -> bool:
    """Whether a transform of torch.func is going on."""
    return torch._C._functorch.maybe_current_level() is not None


def attach_functional(
    f: Cell, z: State, args: tuple[Any, ...], respond: Callable[[Product, Cotangent], Cotangent]
) -> State:
    """Evaluate ``f(z, *args)``, with ``respond`` between it and the loss; as `adjoint.attach`.

    One derivative in reverse mode; a further one, or forward mode, raises :class:`GradientError`.
    """
    points = [leaf.detach() for leaf in leaves(z)]
    autocast = Autocast(points[0].device)
    image = leaves(f(rebuild(z, points), *args), like=z)

    def link(u: Cotangent) -> Cotangent:
        with torch.no_grad(), autocast.on():
            evaluation = _Pulled(f, z, points, args)
        with torch.no_grad(), autocast.off():
            return respond(Product(evaluation), u)

    cast = [leaf.to(point.dtype) for leaf, point in zip(image, points, strict=True)]
    linked = _Linked.apply(link, *cast)  # type: ignore[no-untyped-call]
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
        self.pull = pulled[1]

    def take(self, rows: Tensor) -> Evaluation:
        """As :meth:`Evaluation.take`."""
        args = take_rows(map_tensors(Tensor.detach, self.args), rows)
        with self.autocast.on():
            return _Pulled(self.f, self.like, [p.index_select(0, rows) for p in self.points], args)

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
        # v depends on u and, through J, on what the image depends on; both were not recorded.
        guarded = _Refused.apply(len(v), *v, *u, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, *guarded

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(NO_FUNC)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *_: Any) -> Any:
        raise GradientError(NO_FUNC)


class _Refused(Function):
    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise GradientError(NO_FUNC)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(NO_FUNC)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *_: Any) -> Any:
        raise GradientError(NO_FUNC)
