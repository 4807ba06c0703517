"""Pickles put together by hand, and what is known of each."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tests.teachers.official import Persistent, pickled

NONE, EMPTY, STOP = b"N", b")", b"."


@dataclass(frozen=True)
class Attack:
    name: str
    does: str
    data: bytes
    refused: bool  # as unsafe; else as damaged, or as no checkpoint
    words: str  # of the message


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def named(module: str, name: str) -> bytes:
    """A global by protocol 4, dots in the name being attributes to Python's own reader."""
    return text(module) + text(name) + b"\x93"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def whole(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + STOP


def blob(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def entry(value: bytes) -> bytes:
    """A checkpoint whose network is this value."""
    return whole(b"}", text("ema"), value, b"s")


def legacy(count: int = 4, body: bytes | None = None, part: bytes | None = None) -> bytes:
    """A torch file of one storage; ``part`` takes the place of its fourth pickle."""
    file = io.BytesIO()
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    torch.save(storage, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    start = data.index(b"\x80\x02(X\x07\x00\x00\x00storage")
    key = data[data.index(b"X", data.index(b"FloatStorage")) :]
    key = key[: 5 + key[1]]
    end = data.index(STOP + b"\x80\x02]", start) + 1
    if part is None:
        reference = [text("storage"), b"ctorch\nFloatStorage\n", key, text("cpu"), integer(count)]
        part = b"\x80\x02(" + b"".join(reference) + NONE + b"tQ."
    return data[:start] + part + (data[end:] if body is None else data[end : len(data) - 24] + body)


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def storage(data: bytes) -> bytes:
    return call("torch.storage", "_load_from_bytes", blob(data))


def tensor(offset: int, size: Iterable[int], stride: Iterable[int]) -> bytes:
    shapes = [b"(" + b"".join(integer(n) for n in shape) + b"t" for shape in (size, stride)]
    return call(
        "torch._utils", "_rebuild_tensor_v2", storage(legacy()), integer(offset), *shapes, b"\x89"
    )


def network(change: Any = None, **kwargs: Any) -> bytes:
    """A checkpoint of an EDM network without tensors; ``change`` may do anything to it."""
    options = {"img_resolution": 16, "img_channels": 3, "model_type": "SongUNet", **kwargs}
    module = Persistent(options.pop("class_name", "EDMPrecond"), "", **options)
    if change:
        change(module)
    return pickled({"ema": module})
