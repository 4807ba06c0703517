"""Rows of many memory maps in one indexing call, however many maps they lie in.

A batch of 256 random pairs of a million visits some 160 shards. Indexed map by map, it costs a
hundred times what it copies. So numpy is given one view that begins at every byte of the address
space, of which only the rows asked for are ever touched; a row is then found by its address. Who
calls vouches that each row lies in a map that is open.

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

FIRST = 4096  # nothing is mapped below; a view must begin somewhere, and not at null
SPAN = 2**47  # what a process can address on 64-bit systems
CHUNK = 2**15  # SPAN of these is still a size that numpy takes


def gather(addresses: Array, size: int) -> Array:
    """Copy rows of memory.

    Args:
        addresses: of the first byte of each row, ``(B,)`` int64.
        size: bytes of a row, at least 1.

    Returns:
        ``(B, size)`` uint8.
    """
    everywhere, offsets = _view(size)
    places = addresses - FIRST  # (B,)
    if len(offsets) > 1:
        places = (places[:, None] + offsets).reshape(-1)  # (B K,)
    found: Array = everywhere[places].view(np.uint8).reshape(len(addresses), size)
    return found


@lru_cache
def _view(size: int) -> tuple[Array, Array]:
    """The address space as overlapping chunks that divide a row, and their offsets in it (K,)."""
    chunk = next(c for c in range(min(size, CHUNK), 0, -1) if size % c == 0)
    memory: Any = (ctypes.c_char * chunk).from_address(FIRST)  # not read here, nor anywhere
    first: Array = np.frombuffer(memory, dtype=f"V{chunk}")
    everywhere = as_strided(first, shape=(SPAN - FIRST - chunk,), strides=(1,), writeable=False)
    return everywhere, np.arange(0, size, chunk)
