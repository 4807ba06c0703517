"""One shard of pairs: written as safetensors, read by mapping the file into memory.

The reader parses the header itself instead of asking the library, because it wants one memory map
over the whole file, from which a batch is gathered in one indexing call a tensor. It trusts
nothing: every offset, dtype and shape is checked against the file's size before anything is mapped.

Letters: N pairs in a shard.
"""

from __future__ import annotations

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import save
from torch import Tensor

from deqgen.data.manifest import PairError, ShardRecord

Array = npt.NDArray[Any]

DTYPES = {"F16": np.float16, "U8": np.uint8, "I64": np.int64}
HEADER_LIMIT = 1_000_000  # bytes; ours take a few hundred


def shard_file(index: int) -> str:
    """Path of shard ``index`` below the pair folder."""
    return f"shards/pairs-{index:06d}.safetensors"


def shard_bytes(tensors: dict[str, Tensor], note: dict[str, Any]) -> bytes:
    """A safetensors file in memory, the same bytes for the same tensors.

    ``note`` goes into one metadata entry: the library writes several in no fixed order.
    """
    return save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={"deqgen_pairs": json.dumps(note, sort_keys=True)},
    )


def open_shard(
    directory: Path, record: ShardRecord, tensors: dict[str, dict[str, Any]]
) -> dict[str, Array]:
    """Map a shard into memory.

    Args:
        directory: the pair folder.
        record: what the manifest says about the shard.
        tensors: dtype and row shape of the tensors it must hold.

    Returns:
        Read-only arrays over the file, ``(N, *row)``.

    Raises:
        PairError: missing, truncated, or not what the manifest says.
    """
    path = directory / record.file
    if not path.is_file():
        raise PairError(f"shard {record.file} is missing from {directory}")
    size = path.stat().st_size
    if size != record.size:
        raise PairError(
            f"shard {record.file} in {directory} has {size} bytes and should have {record.size}: "
            + ("it is truncated" if size < record.size else "it is damaged")
        )
    raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    header, start = _read_header(raw, path)
    return {
        name: _view(raw, start, header.get(name), name, row, record, path)
        for name, row in tensors.items()
    }


def shard_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read_header(raw: Array, path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset at which the tensors begin."""
    damaged = PairError(f"shard {path} is damaged: its header cannot be read")
    if len(raw) < 8:
        raise damaged
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > min(HEADER_LIMIT, len(raw) - 8):
        raise damaged
    try:
        header = json.loads(raw[8 : 8 + length].tobytes())
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    return header, 8 + length


def _view(
    raw: Array,
    start: int,
    entry: Any,
    name: str,
    row: dict[str, Any],
    record: ShardRecord,
    path: Path,
) -> Array:
    """One tensor of the file, after checking that the header, manifest and file size agree."""
    if not isinstance(entry, dict):
        raise PairError(f"shard {path} holds no tensor {name!r}")
    if row["dtype"] not in DTYPES:
        raise PairError(f"the manifest gives tensor {name!r} the unknown dtype {row['dtype']!r}")
    shape = [record.count, *row["shape"]]
    if entry.get("shape") != shape or entry.get("dtype") != row["dtype"]:
        raise PairError(
            f"tensor {name!r} of shard {path} is {entry.get('dtype')} {entry.get('shape')}, "
            f"and the manifest says {row['dtype']} {shape}"
        )
    dtype = np.dtype(DTYPES[row["dtype"]])
    offsets = entry.get("data_offsets")
    if not (
        isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)
    ):
        raise PairError(f"shard {path} is damaged: tensor {name!r} has no place in it")
    begin, end = start + offsets[0], start + offsets[1]
    if not start <= begin <= end <= len(raw) or end - begin != math.prod(shape) * dtype.itemsize:
        raise PairError(f"shard {path} is damaged: tensor {name!r} does not fit into the file")
    view: Array = raw[begin:end].view(dtype).reshape(shape)
    return view
