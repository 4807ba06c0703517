"""One evaluation of f in the graph, whose backward first transforms the cotangent.

At a fixed point z* = f(z*, theta), with J the Jacobian of f in z, a loss with gradient u has
dL/dtheta = v^T df/dtheta, where v solves v = u + J^T v (Bai et al. 2019, arXiv 1909.01377,
theorem 1). So it is enough to evaluate f once at z*, to put a function behind it that turns u
into v on the way back, and to let autograd do the rest: everything that f depends on, by argument
or by closure, then receives its gradient. J^T v comes from the same graph, so nothing is
recomputed in the backward pass, unless an estimator asks for a part of the samples, and the
autocast settings of the forward evaluation hold throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from deqgen.gradients.functional import attach_functional, in_transform
from deqgen.gradients.product import Cotangent, Evaluation, Product, filled
from deqgen.gradients.protocol import Cell, GradientError, State
from deqgen.gradients.refusal import NO_BATCH, NO_FORWARD, NO_FURTHER, NO_MIXED, refuse
from deqgen.gradients.states import leaves, rebuild

Respond: TypeAlias = Callable[[Product, Cotangent], Cotangent]
"""(v -> J^T v, u) -> v: an estimator's answer to the adjoint system v = u + J^T v."""


def attach(
    f: Cell,
    z: State,
    args: tuple[Any, ...],
    respond: Respond,
    *,
    order: int = 1,
    forward_mode: bool = False,
) -> State:
    """Evaluate ``f(z, *args)`` in the graph, with ``respond`` between it and the loss.

    In terms of Newton's method this is one step, z + R (f(z, theta) - z), from a constant z with a
    constant R = (I - J)^-1. Its value is z*, and its first derivative in theta that of the fixed
    point. Each further step with the same R, from the result of the one before, is right in one
    more derivative; autograd takes them.

    Args:
        f: the cell.
        z: the point, of which only the numbers are used.
        args: further arguments of f.
        respond: turns a cotangent u of f(z) into the cotangent v that f is pulled back with.
        order: derivatives that are right; one evaluation is recorded for each.
        forward_mode: whether ``respond``, given v -> J v in place of v -> J^T v, is its own
            transpose, so that it serves tangents too.

    Returns:
        f(z), in the structure and the dtypes of ``z``. It requires a gradient only if something
        other than ``z`` does.
    """
    forget_casts()
    if in_transform():
        return attach_functional(f, z, args, respond)
    moving: list[Tensor] = []  # the leaves of z, once they are in the graph
    for step in range(order):
        points = moving or _tracked(z)
        evaluation = Evaluation(f, z, points, args)
        image = evaluation.image
        if not moving and not has_tangent(image) and not _reaches_others(image, points):
            return rebuild(z, [leaf.detach() for leaf in image])
        link = _Link(evaluation, respond, order, forward_mode)
        value = image if step == order - 1 else points
        inputs = len(image), *image, *moving
        moving = list(_Newton.apply(link, value, *inputs))  # type: ignore[no-untyped-call]
    return rebuild(z, moving)


def forget_casts() -> None:
    """Drop autocast's cached weights if there may be any.

    Before the fix of PyTorch's issue 158232, weights that autocast cast under ``no_grad`` were
    cached without history; a recorded evaluation that met them gave those weights no gradient,
    without a word.
    """
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


class _Link:
    """A recorded evaluation and an estimator's response to it."""

    def __init__(
        self, evaluation: Evaluation, respond: Respond, order: int, forward_mode: bool
    ) -> None:
        self.evaluation, self.image, self.respond = evaluation, evaluation.image, respond
        self.order, self.forward_mode = order, forward_mode

    def __call__(self, u: Cotangent, straight: bool) -> Cotangent:
        """The response to a cotangent or, straight, to a tangent."""
        if straight and not self.forward_mode:
            raise GradientError(NO_FORWARD)
        try:
            with torch.no_grad():
                v: Cotangent = self.respond(Product(self.evaluation, straight), u)
        except RuntimeError as error:
            if not str(error).startswith("Batching rule not implemented"):
                raise
            raise GradientError(NO_BATCH) from error
        return v


class _Newton(Function):
    """A given value, with the derivatives of z + R (f(z) - z), where R is the response.

    Inputs are a link, the value, the number of leaves, those of f(z) and, unless z is constant,
    those of z.
    """

    @staticmethod
    def forward(ctx: Any, link: _Link, value: list[Tensor], count: int, *x: Tensor) -> Cotangent:
        ctx.link, ctx.count, ctx.constant = link, count, len(x) == count
        # Copies, because autograd forbids in-place changes of views made inside a Function.
        return tuple(leaf.detach().clone() for leaf in value)

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        v = _respond(ctx.link, ctx.link.order, False, u)
        remainder = () if ctx.constant else (a - b for a, b in zip(u, v, strict=True))
        return None, None, None, *v, *remainder

    @staticmethod
    def jvp(ctx: Any, _link: None, _value: None, _count: None, *t: Tensor | None) -> Cotangent:
        link: _Link = ctx.link
        image = filled(t[: ctx.count], link.image)
        if ctx.constant:
            return link(image, straight=True)
        start = filled(t[ctx.count :], link.image)
        moved = link(tuple(a - b for a, b in zip(image, start, strict=True)), straight=True)
        return tuple(a + b for a, b in zip(start, moved, strict=True))


class _Response(Function):
    """The response to cotangents, or to tangents, as a linear map that can be differentiated."""

    @staticmethod
    def forward(ctx: Any, link: _Link, order: int, straight: bool, *u: Tensor) -> Cotangent:
        ctx.link, ctx.order, ctx.straight = link, order, straight
        v: Cotangent = link(u, straight)
        return tuple(part.clone() for part in v)

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        return None, None, None, *_respond(ctx.link, ctx.order, not ctx.straight, u)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(NO_MIXED)


def _respond(link: _Link, order: int, straight: bool, u: Cotangent) -> Cotangent:
    """Take one derivative out of ``order``; what comes back allows one fewer."""
    if has_tangent(u) or has_tangent(link.image):
        raise GradientError(NO_MIXED)
    if order > 1 and torch.is_grad_enabled():
        v: Cotangent = _Response.apply(link, order - 1, straight, *u)  # type: ignore[no-untyped-call]
        return v
    v = link(u, straight)
    # v depends on u and, through J, on whatever f depends on; its history was not recorded.
    return refuse(NO_FURTHER.format(order=link.order), v, (*u, *link.image))


def _tracked(z: State) -> list[Tensor]:
    """Leaves of z as the beginning of a graph."""
    return [leaf.detach().requires_grad_() for leaf in leaves(z)]


def has_tangent(tensors: Any) -> bool:
    """Whether forward-mode differentiation goes through one of these."""
    unpack: Any = forward_ad.unpack_dual
    return any(unpack(t).tangent is not None for t in tensors)


def _reaches_others(image: list[Tensor], points: list[Tensor]) -> bool:
    """Whether the graph of ``image`` leads to a leaf that is not one of ``points``."""
    own = {id(point) for point in points}
    if any(leaf.requires_grad and leaf.grad_fn is None and id(leaf) not in own for leaf in image):
        return True
    stack: list[Any] = [leaf.grad_fn for leaf in image if leaf.grad_fn is not None]
    seen = set(stack)
    while stack:  # ends at the first parameter, which is usually a few nodes away
        node = stack.pop()
        if node.name() == "torch::autograd::AccumulateGrad" and id(node.variable) not in own:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return False
