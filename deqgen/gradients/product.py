"""Products with the Jacobian of a cell, from one recorded evaluation of it.

Letters: B samples, R of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deqgen.gradients.protocol import Cell, State
from deqgen.gradients.recompute import NOT_THE_SAME_ROWS, check_same
from deqgen.gradients.states import leaves, rebuild
from deqgen_solvers.autocast import Autocast
from deqgen_solvers.state import map_tensors, take_rows

Cotangent: TypeAlias = tuple[Tensor, ...]
"""One tensor a leaf of the state, of the leaf's shape; a tangent too."""


class Evaluation:
    """``image = f(points, *args)``, recorded.

    Args:
        f: the cell.
        like: a state of the structure that f maps.
        points: its leaves, in the graph.
        args: further arguments of f.
    """

    def __init__(self, f: Cell, like: State, points: list[Tensor], args: tuple[Any, ...]) -> None:
        self.f, self.like, self.points, self.args = f, like, points, args
        self.autocast = Autocast(points[0].device)
        image = leaves(f(rebuild(like, points), *args), like=like)
        self.image = [leaf.to(point.dtype) for leaf, point in zip(image, points, strict=True)]

    def take(self, rows: Tensor) -> Evaluation:
        """Record f anew on the samples ``rows`` (R,) alone; f is row-wise, args hold rows."""
        args = take_rows(map_tensors(Tensor.detach, self.args), rows)
        with self.autocast.on():
            taken = self.at([p.detach().index_select(0, rows) for p in self.points], args)
        before = [leaf.detach().index_select(0, rows) for leaf in self.image]
        check_same(before, taken.image, self.autocast, NOT_THE_SAME_ROWS)
        return taken

    def at(self, points: list[Tensor], args: tuple[Any, ...]) -> Evaluation:
        """The same cell elsewhere."""
        with torch.enable_grad():
            begun = [point.requires_grad_() for point in points]
            return Evaluation(self.f, self.like, begun, args)

    def vjp(self, v: Cotangent) -> Cotangent:
        """J^T v, at the cost of one backward pass through f."""
        pairs = [(leaf, g) for leaf, g in zip(self.image, v, strict=True) if leaf.requires_grad]
        if not pairs:
            return tuple(torch.zeros_like(point) for point in self.points)
        outputs, grads = zip(*pairs, strict=True)
        pulled = torch.autograd.grad(
            outputs, self.points, grads, retain_graph=True, allow_unused=True
        )
        return filled(pulled, self.points)

    def jvp(self, t: Cotangent) -> Cotangent:
        """J t, as the derivative of the linear map v -> J^T v: two backward passes."""
        with torch.enable_grad():
            dummies = [torch.zeros_like(leaf).requires_grad_() for leaf in self.image]
            outputs = [leaf for leaf in self.image if leaf.requires_grad]
            grads = [d for d, x in zip(dummies, self.image, strict=True) if x.requires_grad]
            pulled = torch.autograd.grad(
                outputs, self.points, grads, create_graph=True, allow_unused=True
            )
        reached = [
            (p, x) for p, x in zip(pulled, t, strict=True) if p is not None and p.requires_grad
        ]
        if not reached:
            return tuple(torch.zeros_like(x) for x in t)
        ends, along = zip(*reached, strict=True)
        pushed = torch.autograd.grad(ends, dummies, along, allow_unused=True)
        return filled(pushed, dummies)


@dataclass(frozen=True)
class Product:
    """The linear map v -> J^T v, or v -> J v, of an evaluation."""

    evaluation: Evaluation
    straight: bool = False

    def __call__(self, v: Cotangent) -> Cotangent:
        """Apply it."""
        return self.evaluation.jvp(v) if self.straight else self.evaluation.vjp(v)

    def take(self, rows: Tensor) -> Product:
        """The same for the samples ``rows`` (R,) alone, at the cost of one evaluation of them."""
        return Product(self.evaluation.take(rows), self.straight)


def filled(parts: Any, like: Any) -> Cotangent:
    """Zeros where autograd found no dependence."""
    pairs = zip(parts, like, strict=True)
    return tuple(torch.zeros_like(x) if part is None else part for part, x in pairs)
