"""Walk the tensors of a state: a tensor, or nested tuples, lists and dicts of tensors.

``like`` gives the structure and the order of the leaves, so that a cell may return its dict in
any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from deqgen.gradients.protocol import State
from deqgen_solvers import Solution, Status
from deqgen_solvers.errors import StateError

# A tuple of types, not a union: torch.compile traces through these checks.
_CONTAINERS = (dict, list, tuple)


def leaves(tree: State, like: State | None = None) -> list[Tensor]:
    """The tensors of ``tree`` in the order in which ``like`` (default: ``tree``) holds them."""
    return list(_walk(tree, tree if like is None else like))


def rebuild(like: State, tensors: list[Tensor]) -> State:
    """The containers of ``like`` around ``tensors``, the inverse of :func:`leaves`."""
    return _fill(like, iter(tensors))


def map_leaves(function: Callable[..., Tensor], tree: State, like: State | None = None) -> State:
    """Apply ``function`` to every leaf, or to every pair (leaf, leaf of ``like``) if given."""
    template = tree if like is None else like
    mine = leaves(tree, template)
    if like is None:
        return rebuild(tree, [function(leaf) for leaf in mine])
    return rebuild(like, [function(a, b) for a, b in zip(mine, leaves(like), strict=True)])


def detach(tree: State) -> State:
    """The same numbers without their history."""
    return map_leaves(Tensor.detach, tree)


def answer(solution: Any) -> State:
    """f(z) of the selected iterate; with a bare budget (``tol=None``) the last image itself."""
    return solution.z if solution.fz is None else solution.fz


def budget_report(z: State, steps: int, nfe: int) -> Solution[Any]:
    """What a solve with a bare budget reports, for an estimator that iterates by itself."""
    first = leaves(z)[0]
    whole = torch.ones(first.shape[0], dtype=torch.int64, device=first.device)
    return Solution(
        z=detach(z),
        fz=None,
        residual=None,
        status=whole * int(Status.BUDGET),
        steps=whole * steps,
        nfe=nfe,
    )


def _walk(tree: State, like: State) -> Iterator[Tensor]:
    if not isinstance(like, _CONTAINERS):
        if not isinstance(tree, Tensor):
            raise StateError(f"expected a tensor in the state, got {type(tree).__name__}.")
        yield tree
        return
    kind = type(like).__name__
    if not isinstance(tree, type(like)) or len(tree) != len(like):
        raise StateError(f"expected a {kind} of {len(like)} entries, got {_describe(tree)}.")
    keys = list(like) if isinstance(like, dict) else range(len(like))
    for key in keys:
        if isinstance(like, dict) and key not in tree:
            raise StateError(f"expected the entries {list(like)}, got {list(tree)}.")
        yield from _walk(tree[key], like[key])


def _describe(tree: State) -> str:
    size = f" of {len(tree)} entries" if isinstance(tree, _CONTAINERS) else ""
    return f"a {type(tree).__name__}{size}"


def _fill(like: State, tensors: Iterator[Tensor]) -> State:
    if isinstance(like, dict):
        return {key: _fill(part, tensors) for key, part in like.items()}
    if isinstance(like, (list, tuple)):
        parts = [_fill(part, tensors) for part in like]
        if isinstance(like, list):
            return parts
        return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
    return next(tensors)
