"""CIFAR-10 as its authors distribute it, the binary version or the Python one.

Letters: N images, H height, W width.

The binary version is plain bytes and is recommended. The Python version is pickles; they are read
here without running anything that they name: they may hold numbers, text, lists, dictionaries and
arrays of bytes, and nothing else.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from deqgen.data.image_folder import ImageSourceError
from deqgen.data.image_writer import Pixels

Labels = NDArray[np.int64]
BatchReader = Callable[[bytes], tuple[Pixels, Labels]]

SIDE, CLASSES = 32, 10
ROW = 3 * SIDE**2  # bytes of one image: all red, then all green, then all blue
SPLITS = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_LARGEST = 2**26  # bytes of one file; a batch of 10,000 images has half of it
_WHOLE = 2**29  # bytes of all, unpacked; the authors' archives have a third of it
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, OSError)


def read_cifar10(
    path: str | Path, split: Literal["train", "test"] = "train"
) -> tuple[Pixels, list[int]]:
    """Read the images and classes of one split, in the order of the files.

    Args:
        path: ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``.
        split: 50,000 images to train on, or 10,000 to test on.

    Returns:
        Images ``(N, H, W, 3)`` uint8, and N classes from airplane 0 to truck 9.

    Raises:
        ImageSourceError: no such file, a file that is damaged or cut short or something else, a
            batch that is missing, or a pickle that names what no batch of images needs.
    """
    path = Path(path)
    batches = _read_files(path, SPLITS[split])
    parts = []
    for name in SPLITS[split]:
        if name not in batches:
            raise ImageSourceError(
                f"{path} holds no {name}; it should be cifar-10-binary.tar.gz (recommended) or "
                "cifar-10-python.tar.gz, as the authors distribute them"
            )
        read, content = batches[name]
        try:
            parts.append(_checked(*read(content)))
        except _BadBatch as error:
            raise ImageSourceError(f"{name} in {path} is no batch of images: {error}") from None
    rows = np.concatenate([rows for rows, _ in parts])  # (N, 3072)
    labels = np.concatenate([labels for _, labels in parts])  # (N,)
    images = rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # (N, H, W, 3)
    return images, labels.tolist()


class _BadBatch(ValueError):
    """What is wrong with the content of one file."""


def _read_files(path: Path, wanted: tuple[str, ...]) -> dict[str, tuple[BatchReader, bytes]]:
    """How to read each wanted batch, and its content; in one pass, as gzip cannot be skipped in."""
    if not path.is_file():
        raise ImageSourceError(f"there is no file at {path}")
    readers: dict[str, BatchReader] = dict.fromkeys(wanted, _read_pickle)
    readers |= {f"{name}.bin": _read_binary for name in wanted}
    found: dict[str, tuple[BatchReader, bytes]] = {}
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else file as stream:
                for name, content in _members(path, stream, readers):
                    found[name.removesuffix(".bin")] = readers[name], content
    except _DAMAGED as error:
        raise ImageSourceError(f"{path} is damaged or no tar.gz archive: {error}") from None
    return found


def _members(
    path: Path, stream: io.BufferedIOBase, wanted: Container[str]
) -> Iterator[tuple[str, bytes]]:
    """Base names and contents of the wanted files of a tar archive.

    Extended headers, which may hold anything of any length, are skipped and not read: the names of
    the batches are short enough to do without. tarfile's own iterator reads each whole.
    """
    while (block := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if stream.tell() > _WHOLE:
            raise ImageSourceError(f"{path} unpacks to far more than CIFAR-10 is")
        if header.islnk() or header.issym() or header.isdir() or header.isdev():
            continue  # nothing but a header, whatever its size says
        name = PurePosixPath(header.name).name
        if not 0 <= header.size <= _LARGEST:
            raise ImageSourceError(f"{name} in {path} is too large for a batch of images")
        content = stream.read(header.size)
        padding = -header.size % tarfile.BLOCKSIZE
        if len(content) + len(stream.read(padding)) < header.size + padding:
            raise tarfile.ReadError("it ends within a file")
        if name in wanted and header.isreg():
            yield name, content
    if not stream.tell():
        raise tarfile.ReadError("it is empty")


def _read_binary(content: bytes) -> tuple[Pixels, Labels]:
    """Rows of one byte for the class and 3072 for the image."""
    if not content or len(content) % (1 + ROW):
        raise _BadBatch(f"it has {len(content)} bytes, which is no multiple of {1 + ROW}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + ROW)  # (N, 3073)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _read_pickle(content: bytes) -> tuple[Pixels, Labels]:
    """The entries ``data`` and ``labels`` of a pickled dictionary."""
    batch = _load(content)
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise _BadBatch("it holds no dictionary with data and labels")
    try:
        labels = _plain(batch[b"labels"])
        _, shape, dtype, fortran, raw = batch[b"data"].state  # what NumPy stores of an array
        plain = dtype.name in ("u1", b"u1") and not fortran and isinstance(raw, bytes)
        count, width = _plain(shape)
        if not plain or count * width != len(raw):
            raise ValueError
        return np.frombuffer(raw, np.uint8).reshape(count, width), np.array(labels, np.int64)
    except (TypeError, ValueError, AttributeError):
        raise _BadBatch(
            "its data is no array of bytes in rows, or its labels are no list of integers"
        ) from None


def _plain(numbers: Any) -> list[int]:
    """A flat list of numbers from 0 on: a nested one of a few bytes may stand for gigabytes."""
    if type(numbers) is not list or not all(
        type(number) is int and 0 <= number <= _LARGEST for number in numbers
    ):
        raise ValueError
    return numbers


def _load(content: bytes) -> Any:
    """Unpickle plain data, with stand-ins for the three names that an array is pickled with.

    In Python's own reader and not in C: that one lets a few bytes claim gigabytes of memory.
    """

    class Array:
        def __setstate__(self, state: Any) -> None:
            self.state = state

    class DType:
        def __init__(self, name: Any, *_: Any) -> None:
            self.name = name

        def __setstate__(self, state: Any) -> None:
            pass

    stand_ins = {
        "numpy.core.multiarray._reconstruct": lambda *_: Array(),
        "numpy._core.multiarray._reconstruct": lambda *_: Array(),
        "numpy.ndarray": Array,
        "numpy.dtype": DType,
    }

    def last(count: int) -> Callable[[Any], None]:
        def load(reader: Any) -> None:
            reader.stack[-count:] = [reader.stack[-count:]]

        return load

    class Reader(pickle._Unpickler):
        # Tuples become lists, which are no keys: of tuples in tuples a hash may take for ever.
        dispatch: ClassVar = {
            **pickle._Unpickler.dispatch,
            pickle.TUPLE[0]: pickle._Unpickler.dispatch[pickle.LIST[0]],
            pickle.EMPTY_TUPLE[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
            pickle.TUPLE1[0]: last(1),
            pickle.TUPLE2[0]: last(2),
            pickle.TUPLE3[0]: last(3),
        }

        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in stand_ins:
                raise _BadBatch(f"it names {module}.{name}, which no batch of images needs")
            return stand_ins[f"{module}.{name}"]

    try:
        return Reader(io.BytesIO(content), encoding="bytes").load()
    except _BadBatch:
        raise
    except Exception as error:  # a damaged pickle can make its reader raise anything
        raise _BadBatch(f"it is a damaged pickle ({type(error).__name__}: {error})") from None


def _checked(rows: Pixels, labels: Labels) -> tuple[Pixels, Labels]:
    """Refuse what is not one row of bytes and one class an image."""
    if rows.ndim != 2 or rows.shape[1] != ROW or labels.shape != (len(rows),) or not len(rows):
        raise _BadBatch(f"images are of shape {rows.shape}, labels of {labels.shape}")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise _BadBatch(f"classes lie in 0..{CLASSES - 1}, got {labels.min()}..{labels.max()}")
    return rows, labels
