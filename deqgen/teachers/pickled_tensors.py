"""Tensors in a pickle: views of storages, each of them a small torch file of its own.

Outside ``torch.save``, PyTorch pickles a tensor as ``_rebuild_tensor_v2(storage, offset, size,
stride, ...)`` and a storage as ``_load_from_bytes(b)``, where ``b`` is a file of torch's older
format: five pickles (a magic number, a version, the writer's system, the storage's description, a
list of its key), then the number of elements and the elements.

Safety. The five pickles go through :func:`~deqgen.teachers.restricted.read_pickle` first. The
fourth alone may claim a storage, and one alone, since torch sets aside memory for every claim; this
one is held against the number of bytes, and only then does ``torch.load(weights_only=True)`` read
the file. A tensor may not reach beyond its storage, nor have more elements than it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from deqgen.teachers.restricted import Budget, DamagedPickleError, Vocabulary, read_pickle

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_MOST_DIMENSIONS = 8
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """The elements that tensors are views of, ``(N,)``."""

    elements: Tensor


@dataclass(frozen=True)
class _Claim:
    """What a torch file says about the storage in it."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


def load_storage(data: object, budget: Budget) -> Storage:
    """Read the torch file of one storage; what ``torch.storage._load_from_bytes`` stands for.

    Args:
        data: the bytes of the file.
        budget: of the file around it; is used up.

    Raises:
        UnsafePickleError: a pickle in it asks for anything but storages.
        DamagedPickleError: it is truncated, or no such file.
    """
    if not isinstance(data, bytes):
        raise DamagedPickleError(f"a storage is bytes, not a {type(data).__name__}.")
    budget.spend(bytes=len(data))
    claim, start = _read_claim(data, budget)
    if len(data) - start != 8 + claim.nbytes:
        raise DamagedPickleError(
            f"a storage claims {claim.count:,} elements and brings {len(data) - start - 8:,} bytes."
        )
    typed: Any = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    elements = torch.empty(0, dtype=claim.dtype).set_(typed)
    if elements.shape != (claim.count,):
        raise DamagedPickleError("a storage holds another number of elements than it claims.")
    return Storage(elements)


def _read_claim(data: bytes, budget: Budget) -> tuple[_Claim, int]:
    """Description of the storage, and where its elements begin."""
    if data[:4] == b"PK\x03\x04":
        raise DamagedPickleError("a storage is a zip file, which PyTorch never writes there.")
    stream = BytesIO(data)
    claims: list[_Claim] = []

    def refer(reference: object) -> _Claim:
        claims.append(_claim(reference))
        if len(claims) > 1:
            raise DamagedPickleError("a torch file inside it claims several storages.")
        return claims[0]

    types = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
    plain, claiming = Vocabulary(), Vocabulary(values=types, persistent=refer)
    vocabularies = (plain, plain, plain, claiming, plain)
    magic, version, _, claim, keys = (read_pickle(stream, v, budget) for v in vocabularies)
    if magic != _MAGIC or version != _VERSION:
        raise DamagedPickleError("a storage is no torch file.")
    if not isinstance(claim, _Claim) or keys != [claim.key]:
        raise DamagedPickleError("a torch file inside it holds something else than one storage.")
    return claim, stream.tell()


def _claim(reference: object) -> _Claim:
    """What the persistent id of a storage says: ("storage", type, key, device, count, view)."""
    match reference:
        case ("storage", torch.dtype() as dtype, str(key), str(), int(count), *view):
            if count >= 0 and view in ([], [None]):
                return _Claim(dtype, key, count)
    raise DamagedPickleError("it refers to something that is no storage.")


def rebuild_tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
    /,
) -> Tensor:
    """A view of a storage; what ``torch._utils._rebuild_tensor_v2`` stands for.

    Args:
        storage: a :class:`Storage`.
        offset: where the view begins, in elements.
        size: its shape, up to eight dimensions.
        stride: elements between neighbours, one number a dimension.
        requires_grad: has no effect.
        hooks: must be empty.
        metadata: must be empty.

    Raises:
        DamagedPickleError: it would reach beyond the storage, or hold more elements than it.
    """
    if not isinstance(storage, Storage) or hooks or metadata:
        raise DamagedPickleError("it has a tensor that is no plain one.")
    sizes, strides = _counts(size), _counts(stride)
    (start,) = _counts((offset,))
    available = len(storage.elements)
    if len(sizes) != len(strides):
        raise DamagedPickleError("it has a tensor with more sizes than strides, or fewer.")
    last = start + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    count: int = math.prod(sizes)
    if count > available or (count and last >= available):
        raise DamagedPickleError(
            f"it has a tensor of shape {sizes} that reaches beyond its storage of {available:,} "
            "elements."
        )
    return storage.elements.as_strided(sizes, strides, start)


def rebuild_parameter(
    tensor: object, requires_grad: object = True, hooks: object = None, /
) -> Tensor:
    """The tensor of a parameter; what ``torch._utils._rebuild_parameter`` stands for."""
    if not isinstance(tensor, Tensor) or hooks:
        raise DamagedPickleError("it has a parameter that is no plain one.")
    return tensor


def _counts(values: object) -> tuple[int, ...]:
    """A short tuple of sizes that a tensor may have."""
    if type(values) is not tuple or len(values) > _MOST_DIMENSIONS:
        raise DamagedPickleError("it has a tensor whose shape is no short tuple.")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise DamagedPickleError("it has a tensor with an impossible shape.")
    return values
