"""One evaluation of f in the graph, whose backward first transforms the cotangent.

At a fixed point z* = f(z*, theta), with J the Jacobian of f in z, a loss with gradient u has
dL/dtheta = v^T df/dtheta, where v solves v = u + J^T v (Bai et al. 2019, arXiv 1909.01377,
theorem 1). So it is enough to evaluate f once at z*, to put a function behind it that turns u
into v on the way back, and to let autograd do the rest: everything that f depends on, by argument
or by closure, then receives its gradient. J^T v comes from the same graph, so nothing is
recomputed in the backward pass and the autocast settings of the forward evaluation hold
throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from deqgen.gradients.protocol import Cell, GradientError, State
from deqgen.gradients.states import leaves, rebuild

Cotangent: TypeAlias = tuple[Tensor, ...]
"""One tensor a leaf of the state, of the leaf's shape."""

Respond: TypeAlias = Callable[[Callable[[Cotangent], Cotangent], Cotangent], Cotangent]
"""(v -> J^T v, u) -> v: an estimator's answer to the adjoint system v = u + J^T v."""


def attach(f: Cell, z: State, args: tuple[Any, ...], respond: Respond) -> State:
    """Evaluate ``f(z, *args)`` in the graph, with ``respond`` between it and the loss.

    Args:
        f: the cell.
        z: the point, of which only the numbers are used.
        args: further arguments of f.
        respond: turns a cotangent u of f(z) into the cotangent v that f is pulled back with.

    Returns:
        f(z), in the structure and the dtypes of ``z``. It requires a gradient only if something
        other than ``z`` does.
    """
    forget_casts()
    points = [leaf.detach().requires_grad_() for leaf in leaves(z)]
    image = leaves(f(rebuild(z, points), *args), like=z)
    image = [leaf.to(point.dtype) for leaf, point in zip(image, points, strict=True)]
    if not _reaches_others(image, points):
        return rebuild(z, [leaf.detach() for leaf in image])

    def vjp(v: Cotangent) -> Cotangent:
        pairs = [(leaf, g) for leaf, g in zip(image, v, strict=True) if leaf.requires_grad]
        outputs, grads = zip(*pairs, strict=True)
        pulled = torch.autograd.grad(outputs, points, grads, retain_graph=True, allow_unused=True)
        return tuple(
            torch.zeros_like(point) if part is None else part
            for part, point in zip(pulled, points, strict=True)
        )

    def backward(u: Cotangent) -> Cotangent:
        with torch.no_grad():
            return respond(vjp, u)

    attached: Cotangent = _Adjoint.apply(backward, *image)  # type: ignore[no-untyped-call]
    return rebuild(z, list(attached))


def forget_casts() -> None:
    """Drop autocast's cached weights if there may be any.

    Before the fix of PyTorch's issue 158232, weights that autocast cast under ``no_grad`` were
    cached without history; a recorded evaluation that met them gave those weights no gradient,
    without a word.
    """
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()


def refuse(message: str, tensors: Cotangent, anchors: tuple[Any, ...]) -> Cotangent:
    """Return ``tensors`` such that a derivative taken through them raises ``message``.

    ``anchors`` are what the true derivative would flow to: autograd visits a function only if it
    lies on the way to an input, so the refusal must lie on the way to each of them.
    """
    alive = [a for a in anchors if isinstance(a, Tensor) and a.requires_grad]
    if not alive or not torch.is_grad_enabled():
        return tensors
    refused: Cotangent = _Refusal.apply(  # type: ignore[no-untyped-call]
        message, len(tensors), *tensors, *alive
    )
    return refused


class _Adjoint(Function):
    """Identity forward; backward hands the cotangents through an estimator's response."""

    @staticmethod
    def forward(ctx: Any, backward: Callable[[Cotangent], Cotangent], *image: Tensor) -> Cotangent:
        ctx.respond = backward
        ctx.image = image  # inputs, not outputs: no reference cycle
        # Copies, because autograd forbids in-place changes of views made inside a Function.
        return tuple(leaf.clone() for leaf in image)

    @staticmethod
    def backward(ctx: Any, *u: Tensor) -> tuple[Any, ...]:
        v = ctx.respond(u)
        # v depends on u and, through J, on whatever f depends on; its history was not recorded.
        return None, *refuse(_NO_SECOND_ORDER, v, (*u, *ctx.image))

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(
            "forward-mode differentiation through this estimator is not available; "
            "use gradient=Unrolled(steps), which autograd follows step by step."
        )


class _Refusal(Function):
    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> Cotangent:
        ctx.message = message
        return tuple(t.clone() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise GradientError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise GradientError(ctx.message)


_NO_SECOND_ORDER = (
    "a second derivative was taken through an equilibrium whose backward pass was solved, not "
    "recorded, so it would be wrong; use gradient=Unrolled(steps) for double backward (gradient "
    "penalties, Hessian products)."
)


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
