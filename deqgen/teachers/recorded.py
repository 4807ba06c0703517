"""What the names in a pickle of EDM stand for here: plain data, and records of modules.

EDM writes each of its network's modules as a call of ``_reconstruct_persistent_obj`` on a dict that
also holds the source code of the module's class; its own loader runs that. Here the call makes a
:class:`Recorded`, the name of the class and the module's attributes, and the source is dropped.

Safety. This table is all that a file can ask for; see :mod:`deqgen.teachers.restricted` for what
that means.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from deqgen.teachers.pickled_tensors import load_storage, rebuild_parameter, rebuild_tensor
from deqgen.teachers.restricted import (
    Budget,
    DamagedPickleError,
    UnsafePickleError,
    Vocabulary,
    checked_key,
    read_pickle,
    shown,
)

_SCALARS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *("int64", "int32", "int16", "int8", "uint8"),
)


@dataclass(eq=False)
class Recorded:
    """A module that was pickled: the name of its class, and its attributes as plain data."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)

    def build(self, state: object, /) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise DamagedPickleError(f"the state of a {self.class_name} is no dict.")
        self.state = state

    def __repr__(self) -> str:
        return f"Recorded({self.class_name!r}, {len(self.state)} attributes)"


@dataclass(eq=False)
class _ScalarType:
    """A NumPy dtype, of which scalars are made."""

    code: str
    order: str = "="

    def build(self, state: object, /) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise DamagedPickleError("it has a NumPy dtype with a state that is none.")
        self.order = state[1]


def read_edm_pickle(path: Path) -> object:
    """Read a pickle of EDM as plain data.

    Memory stays below some three times the size of the file, plus 0.3 GB at the very worst; text
    beyond ASCII, of which a network has none worth mentioning, may take seven times its size.

    Args:
        path: the file.

    Returns:
        Plain data (see :func:`~deqgen.teachers.restricted.read_pickle`), tensors and
        :class:`Recorded` modules. Tensors may share memory.

    Raises:
        UnsafePickleError: (a ValueError) it asks for anything else.
        DamagedPickleError: (a ValueError) it is truncated, contradicts itself, or is no pickle.
        OSError: the file cannot be read.
    """
    budget = Budget(path.stat().st_size)
    with path.open("rb") as file:
        if not budget.bytes:
            raise DamagedPickleError("it is empty.")
        if file.read(4) == b"PK\x03\x04":
            raise DamagedPickleError("it is a zip file, as torch.save writes; EDM's are pickles.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return read_pickle(cast(IO[bytes], mapped), edm_vocabulary(budget), budget)


def edm_vocabulary(budget: Budget) -> Vocabulary:
    """All that a pickle of EDM may name; what is decoded is charged to ``budget``."""
    calls: dict[str, Callable[..., object]] = {
        "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct,
        "torch.nn.modules.container.ModuleDict": partial(_container, "ModuleDict"),
        "torch.nn.modules.container.ModuleList": partial(_container, "ModuleList"),
        "torch.storage._load_from_bytes": partial(load_storage, budget=budget),
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": rebuild_parameter,
        "torch.device": _device,
        "torch.Size": _shape,
        "collections.OrderedDict": _new_dict,
        "dnnlib.util.EasyDict": _new_dict,
        "builtins.set": partial(_new_set, budget),
        "numpy.dtype": _scalar_type,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
    }
    return Vocabulary(calls=calls, values={f"torch.{name}": f"torch.{name}" for name in _DTYPES})


def _reconstruct(meta: object, /) -> Recorded:
    """A module of EDM, from the six entries of its record; ``module_src`` is left behind."""
    if type(meta) is not dict or meta.get("type") != "class":
        raise DamagedPickleError("it has a record of EDM that is not of a class.")
    name, state = meta.get("class_name"), meta.get("state")
    if type(name) is not str or type(state) is not dict:
        raise DamagedPickleError("it has a record of EDM without a class name or a state.")
    return Recorded(name, state)


def _container(class_name: str, /) -> Recorded:
    """A container of torch, whose attributes come later; arguments do not fit."""
    return Recorded(class_name)


def _device(kind: object, index: object = None, /) -> str:
    if type(kind) is not str or len(kind) > 20:
        raise DamagedPickleError("it has a device without a name.")
    return kind if index is None else f"{kind}:{index}"


def _shape(sizes: object, /) -> tuple[object, ...]:
    if type(sizes) is not tuple:
        raise DamagedPickleError("it has a shape that is no tuple.")
    return sizes


def _new_dict() -> dict[str, object]:
    return {}


def _new_set(budget: Budget, items: object = (), /) -> set[str]:
    """A set as protocols before 4 make it; later ones have instructions for it."""
    if type(items) not in (tuple, list):
        raise DamagedPickleError("it has a set of something that is no list.")
    entries = cast(list[object], items)
    budget.spend(instructions=len(entries))  # the list may be used again, at no cost in the file
    return {checked_key(item) for item in entries}


def _scalar_type(code: object, align: object = False, copy: object = True, /) -> _ScalarType:
    if type(code) is not str or code not in _SCALARS:
        name = shown(code) if type(code) is str else type(code).__name__
        raise UnsafePickleError(
            f"it asks for the NumPy dtype {name!r}, and only numbers are let in; nothing in it was "
            "run."
        )
    return _ScalarType(code)


def _scalar(dtype: object, data: object, /) -> bool | int | float:
    """A NumPy scalar, as Python's number; EDM's networks hold some, such as ``np.sqrt(0.5)``."""
    if not isinstance(dtype, _ScalarType) or type(data) is not bytes:
        raise DamagedPickleError("it has a NumPy scalar without a type or bytes.")
    plain = np.dtype(dtype.code).newbyteorder("=" if dtype.order == "|" else dtype.order)  # type: ignore[arg-type]
    if len(data) != plain.itemsize:
        raise DamagedPickleError(f"it has a NumPy scalar {dtype.code} of {len(data)} bytes.")
    number: bool | int | float = np.frombuffer(data, plain)[0].item()
    return number
