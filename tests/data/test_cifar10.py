"""CIFAR-10 as distributed: both versions, and what a hostile or damaged file comes to."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deqgen.data import ImageSourceError, read_cifar10

SPLITS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
NAMES = [*SPLITS["train"], *SPLITS["test"]]


def rows(seed: int, count: int = 4) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    return data, generator.integers(0, 10, count).tolist()


def binary(data: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, data, strict=True))


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2(data: np.ndarray, labels: list[int], kind: bytes = b"u1") -> bytes:
    """The opcodes that Python 2 and its NumPy wrote: protocol 2, byte strings."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01(" + whole(data.shape[0]) + whole(data.shape[1]) + b"t"
        b"cnumpy\ndtype\n(" + text(kind) + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNN" + whole(-1) + whole(-1) + b"K\x00tb"
        b"\x89" + text(data.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(map(whole, labels)) + b"e"
    entries = text(b"data") + array + text(b"labels") + numbers + text(b"filenames") + b"](e"
    return b"\x80\x02}(" + entries + text(b"batch_label") + text(b"batch") + b"u."


def python3(data: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=4)


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as stored:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10/{name}")
            entry.size = len(content)
            stored.addfile(entry, io.BytesIO(content))
    return path


Write = Callable[[np.ndarray, list[int]], bytes]


@pytest.mark.parametrize("write", [binary, python2, python3], ids=["binary", "python2", "python3"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_both_versions(split: Any, write: Write, tmp_path: Path) -> None:
    ending = ".bin" if write is binary else ""
    # In another order, as the authors' archives are.
    files = {f"{NAMES[i]}{ending}": write(*rows(i)) for i in (3, 5, 0, 1, 4, 2)}
    path = archive(tmp_path / "cifar.tar.gz", {"readme.html": b"hello", **files})
    images, labels = read_cifar10(path, split)
    seeds = [NAMES.index(name) for name in SPLITS[split]]
    wanted = np.concatenate([rows(seed)[0] for seed in seeds])
    assert labels == [label for seed in seeds for label in rows(seed)[1]]
    assert images.shape == (4 * len(seeds), 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(images[:, :, :, 0], wanted[:, :1024].reshape(-1, 32, 32))
    assert np.array_equal(images[:, 7, 5, 2], wanted[:, 2048 + 7 * 32 + 5])


class Call:
    """Pickles to a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    for function, arguments in ((os.mkdir, (str(tmp_path / "gone"),)), (eval, ("1",))):
        content = pickle.dumps({"data": Call(function, *arguments)}, protocol=2)
        path = archive(tmp_path / "a.tar.gz", {"test_batch": content})
        name = f"{function.__module__}.{function.__name__}".replace("builtins", "(builtins|__.*__)")
        with pytest.raises(ImageSourceError, match=f"it names {name}, which no batch"):
            read_cifar10(path, "test")
    assert not (tmp_path / "gone").exists()


DATA, LABELS = rows(0)
NESTED: Any = 0
for _ in range(8):
    NESTED = [NESTED] * 10  # a hundred million zeros, pickled in a hundred bytes
PICKLE = python2(DATA, LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PICKLE[:5000], "damaged pickle"),
        (PICKLE[:-1], "damaged pickle"),
        (b"", "damaged pickle"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "no dictionary"),  # in C: a memo of 64 GB
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.", "damaged pickle"),  # bytes of 72 PB
        (b"\x80\x02cnumpy\nload\n.", "names numpy.load"),
        (b"\x80\x02}(" + text(b"data") + b"N" + text(b"labels") + b"](eu.", "no array of bytes"),
        (python2(DATA, LABELS, kind=b"f4"), "no array of bytes"),
        (python2(DATA, LABELS, kind=b"O8"), "no array of bytes"),
        (python2(DATA[:, :-1], LABELS), r"shape \(4, 3071\)"),
        (pickle.dumps({b"data": DATA, b"labels": NESTED}, protocol=4), "no list of integers"),
        (b"\x80\x02}N" + b"2\x86" * 40 + b"Ns.", "unhashable"),  # a key of 2**40 Nones
        (python2(DATA, LABELS[1:]), r"labels of \(3,\)"),
        (python2(DATA, [0, 1, 2, 10]), r"0\.\.9, got 0\.\.10"),
        (python2(DATA[:0], []), r"shape \(0, 3072\)"),
    ],
    ids=[
        "cut",
        "end",
        "empty",
        "memo",
        "length",
        "global",
        "none",
        "float",
        "object",
        "short",
        "nested",
        "key",
        "labels",
        "class",
        "zero",
    ],
)
def test_a_bad_pickle_is_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"test_batch": content})
    with pytest.raises(ImageSourceError, match=f"test_batch in .* is no batch.*{message}"):
        read_cifar10(path, "test")


def test_a_bad_binary_is_one_sentence(tmp_path: Path) -> None:
    for content, message in (
        (binary(DATA, LABELS)[:-1], "12291 bytes, which is no multiple of 3073"),
        (b"", "0 bytes"),
        (binary(DATA, [0, 0, 0, 11]), r"0\.\.9, got 0\.\.11"),
    ):
        path = archive(tmp_path / "a.tar.gz", {"test_batch.bin": content})
        with pytest.raises(ImageSourceError, match=message):
            read_cifar10(path, "test")


def test_a_bad_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageSourceError, match=r"there is no file at .*none"):
        read_cifar10(tmp_path / "none.tar.gz")
    path = archive(tmp_path / "a.tar.gz", {"test_batch.bin": binary(DATA, LABELS)})
    with pytest.raises(ImageSourceError, match="holds no data_batch_1; it should be cifar-10-bin"):
        read_cifar10(path, "train")
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:40], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ImageSourceError, match=r"a\.tar\.gz is damaged or no tar\.gz archive"):
            read_cifar10(path, "test")


def packed(path: Path, entry: tarfile.TarInfo, size: int) -> Path:
    """A tar.gz of one header and ``size`` zeros."""
    entry.size = size
    with gzip.open(path, "wb", compresslevel=1) as stored:
        stored.write(entry.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            stored.write(bytes(2**20))
    return path


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_hundred_megabytes_is_not_read(kind: bytes, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("PaxHeader")
    entry.type = kind
    path = packed(tmp_path / "a.tar.gz", entry, 100 << 20)
    with pytest.raises(ImageSourceError, match=r"PaxHeader in .* is too large"):
        read_cifar10(path, "test")


def test_an_archive_of_too_many_files_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as stored:
        for _ in range(9):
            filler = tarfile.TarInfo("filler")
            filler.size = 2**26
            stored.write(filler.tobuf())
            stored.seek(2**26, os.SEEK_CUR)  # a hole
        stored.write(tarfile.TarInfo("last").tobuf())
    with pytest.raises(ImageSourceError, match="unpacks to far more than CIFAR-10"):
        read_cifar10(path, "test")


def test_short_extended_headers_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as stored:
        entry = tarfile.TarInfo("données/test_batch.bin")
        entry.mtime = 1.5  # as tarfile's own add() writes it
        entry.size = len(binary(DATA, LABELS))
        stored.addfile(entry, io.BytesIO(binary(DATA, LABELS)))
    assert read_cifar10(path, "test")[1] == LABELS


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    entry = tarfile.TarInfo("test_batch.bin")
    entry.size = 2**40
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT))  # others write the size elsewhere
    with pytest.raises(ImageSourceError, match=r"test_batch\.bin in .* is too large"):
        read_cifar10(path, "test")
