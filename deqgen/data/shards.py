"""One shard of pairs: written as safetensors, read by mapping the file into memory.

Both ends know the format themselves instead of asking the library. The writer hands out the
tensors' own memory, where the library copies it twice. The reader wants one memory map over the
whole file, from which a batch is gathered in one indexing call a tensor. It trusts nothing: every
offset, dtype and shape is checked against the file's size before anything is mapped.

Letters: N pairs in a shard.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deqgen.atomic import file_sha256
from deqgen.data.manifest import PairError, ShardRecord

Array = npt.NDArray[Any]

DTYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I64": np.int64}
TORCH_DTYPES = {
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
    "I64": torch.int64,
}
HEADER_LIMIT = 1_000_000  # bytes; ours take a few hundred


def shard_file(index: int) -> str:
    """Path of shard ``index`` below the pair folder."""
    return f"shards/pairs-{index:06d}.safetensors"


def shard_parts(tensors: dict[str, Tensor], note: dict[str, Any]) -> list[bytes | memoryview]:
    """A safetensors file in pieces, the same bytes for the same tensors, and those of the library.

    Args:
        tensors: contiguous, on the CPU, of the dtypes above.
        note: goes into one metadata entry: the library writes several in no fixed order.

    Returns:
        The header, and the memory of each tensor; the wider numbers first, so that all are aligned.
    """
    names = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"deqgen_pairs": json.dumps(note, sort_keys=True)}}
    parts: list[bytes | memoryview] = []
    offset = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        parts.append(tensor.numpy().reshape(-1).view(np.uint8).data)
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


def row_bytes(name: str, row: dict[str, Any]) -> int:
    """Bytes of one pair in a tensor of this name, of which the manifest gives dtype and row shape.

    Raises:
        PairError: a dtype that is none of those above.
    """
    if row["dtype"] not in DTYPES:
        raise PairError(f"the manifest gives tensor {name!r} the unknown dtype {row['dtype']!r}")
    return int(math.prod(row["shape"])) * np.dtype(DTYPES[row["dtype"]]).itemsize


def open_shard(
    path: Path, record: ShardRecord, tensors: dict[str, dict[str, Any]], place: str
) -> dict[str, Array]:
    """Map a shard into memory.

    Args:
        path: the file.
        record: what the manifest says about the shard.
        tensors: dtype and row shape of the tensors it must hold.
        place: the pair folder, for messages.

    Returns:
        Read-only arrays over the file, ``(N, *row)``.

    Raises:
        PairError: missing, truncated, or not what the manifest says.
    """
    if not path.is_file():
        raise PairError(f"shard {record.file} is missing from {place}")
    size = path.stat().st_size
    if size != record.size:
        raise PairError(
            f"shard {record.file} in {place} has {size} bytes and should have {record.size}: "
            + ("it is truncated" if size < record.size else "it is damaged")
        )
    raw = _map(path, size)
    header, start = _read_header(raw, path)
    return {
        name: _view(raw, start, header.get(name), name, row, record, path)
        for name, row in tensors.items()
    }


def _map(path: Path, size: int) -> Array:
    """The bytes of a file, read when touched, until the array goes.

    A map of numpy's would keep the file open, and a process may have only a thousand open.
    """
    try:
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise PairError(f"shard {path} cannot be mapped into memory: {reason}") from None
    raw: Array = mapped.numpy()
    raw.setflags(write=False)
    return raw


def check_shard(path: Path, record: ShardRecord, place: str) -> None:
    """Read a whole shard and compare its checksum.

    Raises:
        PairError: missing or changed.
    """
    if not path.is_file():
        raise PairError(f"shard {record.file} is missing from {place}")
    if file_sha256(path) != record.sha256:
        raise PairError(
            f"shard {record.file} in {place} is damaged: its SHA-256 is not the manifest's; "
            "delete it and run the command that made it once more"
        )


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
    size = record.count * row_bytes(name, row)
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
    if not start <= begin <= end <= len(raw) or end - begin != size:
        raise PairError(f"shard {path} is damaged: tensor {name!r} does not fit into the file")
    view: Array = raw[begin:end].view(dtype).reshape(shape)
    return view
