from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqgen.data.gather import CHUNK, gather


@given(data=st.data(), size=st.integers(1, 300), arrays=st.integers(1, 4))
def test_rows_are_found_in_any_array(data: st.DataObject, size: int, arrays: int) -> None:
    generator = np.random.default_rng(0)
    memory = [generator.integers(0, 256, (7, size), dtype=np.uint8) for _ in range(arrays)]
    pick = st.tuples(st.integers(0, arrays - 1), st.integers(0, 6))
    wanted = data.draw(st.lists(pick, max_size=20))
    addresses = np.array([memory[a].ctypes.data + r * size for a, r in wanted], dtype=np.int64)
    found = gather(addresses, size)
    assert found.shape == (len(wanted), size) and found.dtype == np.uint8
    for row, (a, r) in zip(found, wanted, strict=True):
        assert np.array_equal(row, memory[a][r])


@pytest.mark.parametrize("size", [CHUNK, CHUNK + 1, 3 * CHUNK, 3 * 97 * 97 * 4, 32_771])
def test_rows_beyond_a_chunk(size: int) -> None:
    """Also those that no large chunk divides: 32,771 is prime."""
    memory = np.random.default_rng(0).integers(0, 256, (3, size), dtype=np.uint8)
    addresses = memory.ctypes.data + np.array([2, 0, 1, 2]) * size
    assert np.array_equal(gather(addresses, size), memory[[2, 0, 1, 2]])


def test_rows_are_copied() -> None:
    memory = np.ones((2, 8), dtype=np.uint8)
    found = gather(np.array([memory.ctypes.data]), 8)
    found[:] = 0
    assert memory.all()
