"""Images in files, batch by batch: an EDM-style zip, a folder, or an ``.npz`` as ADM writes it.

Files are often sorted by class, and then neither their first images nor their tenths are like the
whole. So those that are chosen, and the order that they count in, are those of a permutation that
depends on the number of images alone. They are read in the order of the file all the same, each
once, because an array in an archive can be read in no other way without holding it.

Letters: N images, B images of a batch, C channels, H and W sides.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from deqgen.data.image_folder import ImageFolder, ImageSourceError, read_rgb
from deqgen.data.images import count_image_zip, iterate_image_zip
from deqgen.evaluation.errors import EvaluationInputError

_ARRAY = "arr_0.npy"
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    ValueError,
)
ORDER_SEED = 0
_DENSEST = 1032  # bytes that deflate packs into one, at most
_MODEL_FILES = ("model.safetensors", "ema.safetensors", "checkpoints")


@dataclass(frozen=True)
class ImageSource:
    """Images that are not in memory.

    Attributes:
        name: what to call them.
        count: how many there are.
    """

    name: str
    count: int
    _read: Callable[[Sequence[int], int], Iterator[Tensor]]

    def order(self, count: int) -> Tensor:
        """Places (count,) int64 in the file of the first images of the permutation."""
        generator = torch.Generator().manual_seed(ORDER_SEED)
        return torch.randperm(self.count, generator=generator)[:count]

    def in_order(self, rows: Tensor) -> Tensor:
        """Rows of what :meth:`batches` gave, one an image, in the order of the permutation."""
        ordered = torch.empty_like(rows)
        ordered[self.order(len(rows)).argsort()] = rows
        return ordered

    def batches(self, batch_size: int, count: int) -> Iterator[Tensor]:
        """The first ``count`` images of the permutation, uint8 (B, 3, H, W), as the file has them.

        All images, in the order of the file, where ``count`` is their number.

        Raises:
            EvaluationInputError: fewer images than that, or ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise EvaluationInputError(f"batch_size must be at least 1, got {batch_size}")
        if count > self.count:
            raise EvaluationInputError(f"{self.name} holds {self.count} images, not {count}")
        yield from self._read(self.order(count).sort().values.tolist(), batch_size)


def is_images(path: str | Path) -> bool:
    """Whether a path is a source of images, and not a model, statistics or nothing at all."""
    path = Path(path)
    if path.is_dir():
        if any((path / name).exists() for name in _MODEL_FILES):
            return False
        try:
            return bool(ImageFolder.find(path).paths)
        except ImageSourceError:
            return False
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return _ARRAY in archive.namelist()
        except (OSError, zipfile.BadZipFile):
            return False
    return path.suffix == ".zip"


def open_images(path: str | Path) -> ImageSource:
    """Look at what there is, without reading the pixels.

    Args:
        path: an image archive (see :class:`deqgen.data.ImageZip`); a folder of images of one size,
            or of subfolders of them; or an ``.npz`` whose ``arr_0`` is uint8 (N, H, W, 3), which
            is read piece by piece.

    Raises:
        ImageZipError: the archive is missing or damaged.
        ImageSourceError: the folder holds no images.
        EvaluationInputError: it is something else.
    """
    path = Path(path)
    if path.is_dir():
        paths = ImageFolder.find(path).paths
        return ImageSource(path.name, len(paths), partial(_folder, path, paths))
    if path.suffix == ".npz":
        shape = _array_shape(path)
        return ImageSource(path.name, shape[0], partial(_array, path, shape))
    if path.suffix != ".zip":
        raise EvaluationInputError(
            f"{path} is no source of images: an image archive (.zip), a folder, or an .npz with "
            "arr_0"
        )
    count = count_image_zip(path)
    return ImageSource(path.name, count, partial(_archive, path))


def _archive(path: Path, chosen: Sequence[int], size: int) -> Iterator[Tensor]:
    return (images for images, _ in iterate_image_zip(path, batch_size=size, chosen=chosen))


def _folder(
    folder: Path, paths: tuple[Path, ...], chosen: Sequence[int], size: int
) -> Iterator[Tensor]:
    waiting = iter([paths[place] for place in chosen])
    first = paths[chosen[0]].name if chosen else ""
    shape: tuple[int, ...] | None = None
    while part := list(islice(waiting, size)):
        pixels = [np.asarray(read_rgb(path)) for path in part]  # (H, W, 3)
        shape = shape or pixels[0].shape
        for path, image in zip(part, pixels, strict=True):
            if image.shape != shape:
                raise EvaluationInputError(
                    f"images of one size are measured, but {first} in {folder} is {shape} "
                    f"and {path.name} {image.shape}"
                )
        yield _channels_first(np.stack(pixels))


def _array_shape(path: Path) -> tuple[int, ...]:
    """Shape (N, H, W, 3) of ``arr_0``."""
    with _opened(path) as (_, shape, dtype):
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
            raise EvaluationInputError(
                f"{path}: arr_0 must be uint8 (N, H, W, 3), as ADM's evaluator reads it; got "
                f"{dtype} {shape}"
            )
        if 0 in shape[1:] or prod(shape) > _DENSEST * path.stat().st_size:
            raise EvaluationInputError(
                f"{path} has {path.stat().st_size} bytes and cannot hold images of shape {shape}"
            )
        return shape


def _array(
    path: Path, shape: tuple[int, ...], chosen: Sequence[int], size: int
) -> Iterator[Tensor]:
    image, here = prod(shape[1:]), 0
    with _opened(path) as (stream, _, _):
        for start in range(0, len(chosen), size):
            rows = []
            for place in chosen[start : start + size]:
                stream.seek((place - here) * image, os.SEEK_CUR)
                rows.append(stream.read(image))
                if len(rows[-1]) != image:
                    raise EvaluationInputError(
                        f"{path} is cut short: arr_0 has not all of its {shape[0]} images"
                    )
                here = place + 1
            pixels = np.frombuffer(b"".join(rows), dtype=np.uint8)
            yield _channels_first(pixels.reshape(len(rows), *shape[1:]))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """``arr_0`` of an ``.npz`` as a stream that stands behind its header, with its shape and type.

    Its header alone is read: nothing that it says is given memory before its bytes are there.
    """
    if not path.is_file():
        raise EvaluationInputError(f"there is no file of images at {path}")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_ARRAY) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format
            read = header.read_array_header_1_0 if version[0] == 1 else header.read_array_header_2_0
            shape, columns_first, dtype = read(stream)
            if columns_first:
                raise EvaluationInputError(
                    f"{path}: arr_0 is in Fortran's order, which is not read"
                )
            yield stream, shape, dtype
    except EvaluationInputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise EvaluationInputError(f"{path} is no .npz with images in arr_0: {reason}") from None


def _channels_first(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """(B, H, W, 3) -> (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
