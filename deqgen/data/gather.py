"""Rows of many memory maps in one indexing call, however many maps they lie in.

A batch of 256 random pairs of a million visits some 160 shards. Indexed map by map, it costs a
hundred times what it copies. So numpy is given one view that begins at every byte between the
lowest of the maps and the end of the highest, of which only the rows asked for are ever touched; a
row is then found by its address. Who calls vouches that each row lies in a map that is open.
64-bit systems only.

Letters: B rows, K chunks of a row.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

Array = npt.NDArray[Any]

LARGEST = 2**62  # bytes of an array that numpy takes, chunks that overlap counted each
CHUNK = 2**30  # bytes of an item that numpy takes


def gather(places: Array, dtype: npt.DTypeLike, size: int, span: tuple[int, int]) -> Array:
    """Copy rows of memory.

    Args:
        places: of the first byte of each row, counted from the beginning of the span; ``(B,)``
            int64, none negative, which numpy would count from the end.
        dtype: of the numbers in a row.
        size: bytes of a row, at least 1, and a multiple of the dtype's.
        span: addresses between which all rows lie, from the first byte to one past the last.

    Returns:
        The numbers of all rows, one after another, ``(B * size / itemsize,)``.

    Raises:
        IndexError: a row that ends beyond the span.
    """
    if not len(places):
        return np.empty(0, dtype)
    between, offsets = _view(size, *span)
    if len(offsets) > 1:
        places = (places[:, None] + offsets).reshape(-1)  # (B K,)
    found: Array = between[places].view(dtype)
    return found


@lru_cache
def _view(size: int, low: int, high: int) -> tuple[Array, Array]:
    """The span as overlapping chunks that divide a row, and their offsets in the row (K,)."""
    most = min(size, CHUNK, LARGEST // (high - low))
    chunk = next(c for c in range(most, 0, -1) if size % c == 0)
    memory: Any = (ctypes.c_char * chunk).from_address(low)  # not read here
    first: Array = np.frombuffer(memory, dtype=f"V{chunk}")
    between = as_strided(first, shape=(high - low - chunk + 1,), strides=(1,), writeable=False)
    return between, np.arange(0, size, chunk)
