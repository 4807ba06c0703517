"""A state of any shape or nesting <-> the flat (B, N) matrix that solvers work on.

A state is a tensor of any rank, first axis the batch, or a tuple, list or dict of states. Its
leaves may differ in shape and in dtype.

The flat matrix is float32 or wider. Half-precision leaves are solved in float32 and each iterate is
rounded to its leaf's dtype before f sees it, so that a residual is that of a point which exists. If
every leaf is complex, so is the matrix. If only some are, they become pairs of reals, because a
complex combination would give the real leaves imaginary parts.

Letters: B samples, N unknowns of one sample.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deqgen_solvers.errors import StateError, StateTypeError

Tree: TypeAlias = Any
"""A tensor, or a nested tuple, list or dict of tensors."""

# A tuple of types, not a union: torch.compile traces through these checks in every version.
_CONTAINERS = (tuple, list, dict)

_REAL = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of the state: where it is and what it looks like, batch axis left out."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    as_pairs: bool

    @property
    def flat(self) -> bool:
        """Whether it is a matrix (B, columns) as it stands: worth a short way."""
        return len(self.shape) == 1 and not self.as_pairs

    @property
    def columns(self) -> int:
        """How many columns of the flat matrix belong to this leaf."""
        return math.prod(self.shape) * (2 if self.as_pairs else 1)


class Layout:
    """How one state is laid out flat. Built from z0, it checks everything that f returns.

    Attributes:
        rows: samples B of z0.
        unknowns: columns N.
        dtype: of the flat matrix.
        device: of every leaf.

    Raises:
        StateTypeError: a leaf is no tensor, or holds integers or booleans.
        StateError: no leaf, a leaf without batch axis, or leaves that differ in batch or device.
    """

    def __init__(self, z0: Tree) -> None:
        found = list(_tensors(z0, ""))
        self.rows = _common_rows(found)
        mixed = len({tensor.is_complex() for _, tensor in found}) == 2
        self.leaves = [
            Leaf(path, tuple(t.shape[1:]), t.dtype, t.device, mixed and t.is_complex())
            for path, t in found
        ]
        self.unknowns = sum(leaf.columns for leaf in self.leaves)
        self.device = self.leaves[0].device
        self.dtype = torch.float32
        for leaf in self.leaves:
            real = real_dtype(leaf.dtype) if mixed else leaf.dtype
            self.dtype = torch.promote_types(self.dtype, real)
        self._skeleton = _rebuild(z0, iter(self.leaves))
        self._single = isinstance(self._skeleton, Leaf)  # no container: worth a short way
        # Nothing to round when every leaf is as precise as the matrix.
        self._exact = {real_dtype(x.dtype) for x in self.leaves} == {real_dtype(self.dtype)}

    def flatten(self, tree: Tree, name: str = "f(z)", rows: int | None = None) -> Tensor:
        """Check ``tree`` against the layout and return it as (rows, N), rows = B unless given."""
        rows = self.rows if rows is None else rows
        if self._single:
            return _cast(_checked(self.leaves[0], tree, rows, name), self.dtype)
        found = _matched(self._skeleton, tree, name)
        parts = [_cast(_checked(leaf, value, rows, name), self.dtype) for leaf, value in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def unflatten(self, flat: Tensor) -> Tree:
        """Return (rows, N) in the structure, shapes and dtypes of z0."""
        if self._single:
            return _restore(self.leaves[0], flat)
        parts = torch.split(flat, [leaf.columns for leaf in self.leaves], dim=1)
        leaves = (_restore(leaf, part) for leaf, part in zip(self.leaves, parts, strict=True))
        return _rebuild(self._skeleton, leaves)

    def round(self, flat: Tensor) -> Tensor:
        """Round each leaf to its own dtype, as f will see it."""
        return flat if self._exact else self.flatten(self.unflatten(flat), rows=flat.shape[0])


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of real and imaginary parts (as ``dtype.to_real()``, which does not compile)."""
    return _REAL.get(dtype, dtype)


def take_rows(tree: Tree, rows: Tensor) -> Tree:
    """Gather rows of every tensor in ``tree``; plain values and tensors without axes stay."""
    return map_tensors(lambda t: t.index_select(0, rows) if t.ndim else t, tree)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply ``function`` to every tensor in containers and dataclasses; other values stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, _CONTAINERS):
        return _like(tree, [map_tensors(function, child) for _, child in _entries(tree)])
    if _is_record(tree):
        mapped = copy.copy(tree)
        for field in dataclasses.fields(tree):
            # Not replace(), which refuses fields that the constructor does not take.
            value = map_tensors(function, getattr(tree, field.name))
            object.__setattr__(mapped, field.name, value)
        return mapped
    return tree


def check_rows(tree: Tree, rows: int, name: str = "args") -> None:
    """Raise StateError if a tensor in ``tree`` does not hold one row a sample."""
    if isinstance(tree, Tensor):
        if tree.ndim == 0 or tree.shape[0] != rows:
            raise StateError(
                f"{name}: with compact=True each tensor in args holds one row a sample, so its "
                f"first axis must be {rows}; its shape is {tuple(tree.shape)}. Expand it to "
                f"{rows} rows, or let f close over what all samples share."
            )
    elif isinstance(tree, _CONTAINERS):
        for key, child in _entries(tree):
            check_rows(child, rows, f"{name}[{key!r}]")
    elif _is_record(tree):
        for field in dataclasses.fields(tree):
            check_rows(getattr(tree, field.name), rows, f"{name}.{field.name}")


def _is_record(tree: Tree) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _entries(tree: Tree) -> list[tuple[Any, Tree]]:
    """Keys and children of a container, in order."""
    return list(tree.items() if isinstance(tree, dict) else enumerate(tree))


def _like(tree: Tree, children: list[Tree]) -> Tree:
    """A container as ``tree``, with other children."""
    if isinstance(tree, dict):
        return dict(zip(tree, children, strict=True))
    if isinstance(tree, list):
        return children
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


def _rebuild(tree: Tree, leaves: Iterator[Any]) -> Tree:
    """The containers of ``tree``, filled with ``leaves`` in order."""
    if isinstance(tree, _CONTAINERS):
        return _like(tree, [_rebuild(child, leaves) for _, child in _entries(tree)])
    return next(leaves)


def _tensors(tree: Tree, path: str) -> Iterator[tuple[str, Tensor]]:
    """Paths below z0 and tensors, in order."""
    if isinstance(tree, _CONTAINERS):
        for key, child in _entries(tree):
            yield from _tensors(child, f"{path}[{key!r}]")
        return
    if not isinstance(tree, Tensor):
        kind = type(tree).__name__
        raise StateTypeError(f"z0{path}: a state is made of tensors, got {kind} ({tree!r}).")
    if not (tree.is_floating_point() or tree.is_complex()):
        raise StateTypeError(
            f"z0{path}: a fixed point is sought in real or complex numbers, got {tree.dtype}. "
            "Convert it, for example with z0.float()."
        )
    yield path, tree


def _matched(skeleton: Tree, tree: Tree, path: str) -> Iterator[tuple[Leaf, Any]]:
    """Pairs of leaf and value, in the order of z0; StateError where the structures part."""
    if isinstance(skeleton, Leaf):
        yield skeleton, tree
        return
    kind = next(k for k in (dict, list, tuple) if isinstance(skeleton, k))
    if not isinstance(tree, kind):
        raise StateError(
            f"{path}: expected a {kind.__name__}, as in z0, got {type(tree).__name__}."
        )
    wanted, got = [key for key, _ in _entries(skeleton)], [key for key, _ in _entries(tree)]
    if len(wanted) != len(got) or set(wanted) != set(got):
        raise StateError(f"{path}: expected the entries {wanted}, as in z0, got {got}.")
    for key, child in _entries(skeleton):
        yield from _matched(child, tree[key], f"{path}[{key!r}]")


def _checked(leaf: Leaf, value: Any, rows: int, name: str) -> Tensor:
    """What belongs in ``leaf``, as (rows, columns) in its own dtype; StateError if amiss."""
    if not isinstance(value, Tensor):
        raise StateError(
            f"{name}{leaf.path}: expected a tensor, as in z0, got {type(value).__name__}."
        )
    if value.shape != (rows, *leaf.shape):
        raise StateError(
            f"{name}{leaf.path}: got shape {tuple(value.shape)} for a state of shape "
            f"{(rows, *leaf.shape)}; f must return the shape that it was given."
        )
    if value.dtype != leaf.dtype:
        raise StateError(
            f"{name}{leaf.path}: got {value.dtype} for a state of {leaf.dtype}. Likely causes: "
            "(a) autocast inside f, (b) a weight or an input of another dtype. Cast what f "
            "returns, or z0."
        )
    if value.device != leaf.device:
        raise StateError(
            f"{name}{leaf.path}: got a tensor on {value.device} for a state on {leaf.device}."
        )
    if leaf.flat:
        return value
    parts: Tensor = torch.view_as_real(value.resolve_conj()) if leaf.as_pairs else value
    return parts.reshape(rows, leaf.columns)


def _restore(leaf: Leaf, columns: Tensor) -> Tensor:
    """(rows, columns) -> (rows, *shape) in the leaf's dtype."""
    rows = columns.shape[0]
    if leaf.as_pairs:
        pairs = columns.reshape(rows, *leaf.shape, 2).contiguous()
        return torch.view_as_complex(pairs).to(leaf.dtype)
    return _cast(columns if leaf.flat else columns.reshape(rows, *leaf.shape), leaf.dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, which costs as much as a small sum even where it does nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _common_rows(found: list[tuple[str, Tensor]]) -> int:
    if not found:
        raise StateError("z0: the state holds no tensor.")
    first_path, first = found[0]
    for path, tensor in found:
        if tensor.ndim == 0:
            raise StateError(f"z0{path}: the first axis is the batch, but this tensor has no axis.")
        if tensor.shape[0] != first.shape[0]:
            raise StateError(
                f"z0{path}: {tensor.shape[0]} samples, but z0{first_path} has {first.shape[0]}; "
                "the first axis of every leaf is the batch."
            )
        if tensor.device != first.device:
            raise StateError(f"z0{path}: on {tensor.device}, z0{first_path} on {first.device}.")
    return first.shape[0]  # not int(): torch.export keeps a free batch size symbolic
