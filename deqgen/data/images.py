"""Read EDM-style image zips: square PNG or JPEG files beside a ``dataset.json`` of labels.

Letters: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqgen.data.image_folder import ImageSourceError, read_rgb

_IMAGES = (".png", ".jpg", ".jpeg")
_ENCRYPTED = 1  # bit of an entry's flags


class ImageZipError(ValueError):
    """The archive is missing, damaged, or not laid out as EDM writes it."""


class ImageZip:
    """A labelled image data set held in memory as bytes.

    The layout is EDM's (arXiv 2206.00364, ``dataset_tool``): images of one size, and at the root a
    ``dataset.json`` with ``{"labels": [["00000/img00000000.png", 6], ...]}``, or ``null`` where
    there are no classes. :func:`iterate_image_zip` reads the same without holding it.

    Attributes:
        images: uint8, ``(N, C, H, W)``, in the sorted order of the file names.
        labels: int64, ``(N,)``; all 0 where there are no classes.

    Raises:
        ImageZipError: no such file, not a zip, no ``dataset.json``, or images of several sizes.
    """

    images: Tensor
    labels: Tensor

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        images, labels = zip(*iterate_image_zip(self.path), strict=True)
        self.images, self.labels = torch.cat(images), torch.cat(labels)

    def __len__(self) -> int:
        return len(self.labels)


def iterate_image_zip(
    path: str | Path, *, batch_size: int = 256, chosen: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read an image zip batch by batch, in the sorted order of the file names.

    Args:
        path: the archive; see :class:`ImageZip` for its layout.
        batch_size: images at a time; the last batch may be smaller.
        chosen: places in that order; the others are not read. None for all.

    Yields:
        Images ``(B, C, H, W)`` uint8 and labels ``(B,)`` int64.

    Raises:
        ImageZipError: as :class:`ImageZip`.
    """
    path = Path(path)
    shape: tuple[int, ...] | None = None
    with _opened(path) as (archive, labels):
        names = sorted(labels)
        if chosen is not None:
            names = [names[place] for place in chosen]
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            images = [_read_image(archive, path, name) for name in part]
            shape = _one_shape(path, shape, images)
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (B, C, H, W)
            yield pixels.contiguous(), torch.tensor([labels[name] for name in part])


def count_image_zip(path: str | Path) -> int:
    """How many images an archive lists, without reading them; raises as :class:`ImageZip`."""
    with _opened(Path(path)) as (_, labels):
        return len(labels)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, int]]]:
    """The archive and its labels by name; damage found in the block is one sentence, too."""
    if not path.is_file():
        raise ImageZipError(f"there is no image archive at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.flag_bits & _ENCRYPTED for entry in archive.infolist()):
                raise ImageZipError(f"{path} is encrypted, and image archives are not")
            yield archive, _read_labels(archive, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ImageZipError(f"{path} is damaged or not an image archive: {error}") from None


def _read_labels(archive: zipfile.ZipFile, path: Path) -> dict[str, int]:
    """The class of each image, by its name."""
    names = archive.namelist()
    # A name of the archive and a number a row, and little else: a small file may unpack to any size
    # and would be in memory many times over before it is seen to be none.
    largest = 4096 + sum(6 * len(name) + 64 for name in names)
    size = archive.getinfo("dataset.json").file_size if "dataset.json" in names else 0
    if size > largest:
        raise ImageZipError(
            f"dataset.json in {path} has {size} bytes, and {largest} are enough for its "
            f"{len(names)} files"
        )
    try:
        rows = json.loads(archive.read("dataset.json"))["labels"]
        if rows is None:
            rows = [[name, 0] for name in names if PurePosixPath(name).suffix.lower() in _IMAGES]
        rows = [(name, label) for name, label in rows]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ImageZipError(
            f'{path} has no dataset.json of the form {{"labels": [[name, class], ...]}}'
        ) from None
    if not rows:
        raise ImageZipError(f"{path} lists no images")
    return _checked(rows, path)


def _checked(rows: list[tuple[Any, Any]], path: Path) -> dict[str, int]:
    """Rows of dataset.json, by name: every name once, with a class that is a whole number."""
    labels: dict[str, int] = {}
    for name, label in rows:
        if type(name) is not str or type(label) is not int or not 0 <= label < 2**31:
            raise ImageZipError(
                f"dataset.json in {path} should give a name and a class from 0 on for each image, "
                f"and gives {[name, label]!r:.200}"
            )
        if name in labels:
            raise ImageZipError(f"{path} lists {name} twice")
        labels[name] = label
    return labels


def _read_image(archive: zipfile.ZipFile, path: Path, name: str) -> np.ndarray:
    try:
        stream = archive.open(name)
    except KeyError:
        raise ImageZipError(f"{path} lists {name} but does not hold it") from None
    try:
        with stream:
            return np.asarray(read_rgb(stream, f"{name} in {path}"))
    except ImageSourceError as error:
        raise ImageZipError(str(error)) from None


def _one_shape(
    path: Path, shape: tuple[int, ...] | None, images: list[np.ndarray]
) -> tuple[int, ...]:
    """The shape of these images and of those before."""
    shapes = {image.shape for image in images} | ({shape} if shape else set())
    if len(shapes) != 1:
        raise ImageZipError(f"{path} should hold images of one shape, found {sorted(shapes)[:4]}")
    return images[0].shape


def to_float(images: Tensor) -> Tensor:
    """Map bytes 0..255 to floats in [-1, 1], the range in which every model here works."""
    return images.to(torch.float32).div(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Map floats in [-1, 1] to bytes; values outside are clamped."""
    return images.to(torch.float32).mul(127.5).add_(128.0).clamp_(0, 255).to(torch.uint8)
