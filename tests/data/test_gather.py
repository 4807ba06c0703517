from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deqgen.data.gather import LARGEST, _view, gather


def span(*memory: npt.NDArray[np.uint8]) -> tuple[int, int]:
    begins = [array.ctypes.data for array in memory]
    return min(begins), max(b + a.nbytes for b, a in zip(begins, memory, strict=True))


@given(data=st.data(), size=st.integers(1, 300), arrays=st.integers(1, 4))
def test_rows_are_found_in_any_array(data: st.DataObject, size: int, arrays: int) -> None:
    generator = np.random.default_rng(0)
    memory = [generator.integers(0, 256, (7, size), dtype=np.uint8) for _ in range(arrays)]
    pick = st.tuples(st.integers(0, arrays - 1), st.integers(0, 6))
    wanted = data.draw(st.lists(pick, max_size=20))
    low, high = span(*memory)
    begins = [memory[a].ctypes.data + r * size - low for a, r in wanted]
    found = gather(np.array(begins, dtype=np.int64), np.uint8, size, (low, high))
    assert found.dtype == np.uint8
    found = found.reshape(len(wanted), size)
    for row, (a, r) in zip(found, wanted, strict=True):
        assert np.array_equal(row, memory[a][r])


@pytest.mark.parametrize("size", [2**15, 2**15 + 1, 3 * 2**15, 3 * 97 * 97 * 4, 32_771])
def test_rows_beyond_a_chunk(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that no large chunk divides: 32,771 is prime."""
    monkeypatch.setattr("deqgen.data.gather.CHUNK", 2**14)
    memory = np.random.default_rng(0).integers(0, 256, (3, size), dtype=np.uint8)
    places = np.array([2, 0, 1, 2]) * size
    found = gather(places, np.uint8, size, span(memory)).reshape(4, size)
    assert np.array_equal(found, memory[[2, 0, 1, 2]])
    _view.cache_clear()


def test_rows_are_copied() -> None:
    memory = np.ones((2, 8), dtype=np.uint8)
    found = gather(np.array([0]), np.uint8, 8, span(memory))
    found[:] = 0
    assert memory.all()


@pytest.mark.parametrize("size", [1, 8, 3072, 6144, 3 * 256 * 256 * 4])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (2**48 - 2**41, 2**48 - 2**33),  # where Linux on aarch64 maps files
        (2**12, 2**48),  # from its first byte to its last
        (2**47 - 2**40, 2**47 - 2**36),  # Linux on x86-64
        (2**56 - 2**41, 2**56 - 2**33),  # five levels of pages
    ],
    ids=["aarch64", "all", "x86-64", "five levels"],
)
def test_any_64_bit_span_can_be_seen(low: int, high: int, size: int) -> None:
    """Nothing is read there: the last row's last chunk ends at the end of the view."""
    view, offsets = _view(size, low, high)
    assert view.ctypes.data == low and view.strides == (1,)
    assert len(view) - 1 + view.itemsize == high - low
    assert len(offsets) * view.itemsize == size and offsets[-1] == size - view.itemsize
    assert view.nbytes <= LARGEST


def test_rows_beyond_the_span_are_refused() -> None:
    memory = np.ones((2, 8), dtype=np.uint8)
    with pytest.raises(IndexError):
        gather(np.array([9]), np.uint8, 8, span(memory))


def test_no_rows_of_no_memory() -> None:
    assert gather(np.empty(0, dtype=np.int64), np.float16, 6144, (0, 1)).shape == (0,)
