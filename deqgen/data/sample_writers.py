"""Where generated images go: one npz, one picture of them all, or a folder of PNG files.

A file appears whole or not at all, and none that is there is replaced. Images are written as they
come. The fourth kind, an image archive, is :mod:`deqgen.data.image_writer`'s.

Letters: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deqgen.atomic import replacing, tidy, write_text
from deqgen.data.image_writer import Pixels
from deqgen.data.images import to_uint8
from deqgen.data.manifest import first_difference

SETTINGS = "samples.json"
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of a PNG: no bytes, its name, its checksum


class SampleFolderError(ValueError):
    """The folder holds other images than those that are to be made."""


def to_pixels(images: Tensor) -> Pixels:
    """Images as files hold them: ``(B, C, H, W)`` in [-1, 1] to ``(B, H, W, 3)`` bytes.

    Grey ones (C = 1) are repeated in all three colours.
    """
    return to_uint8(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def write_npz(
    path: Path, batches: Iterable[NDArray[Any]], count: int, labels: Sequence[int] | None = None
) -> None:
    """Write arrays to an npz as ADM's evaluator reads it: ``arr_0`` images, ``arr_1`` labels.

    Args:
        path: ends in ``.npz`` and does not exist.
        batches: ``(B, ...)`` of one dtype and shape, for the evaluator ``(B, H, W, 3)`` uint8.
        count: N, of all batches together.
        labels: N classes; None leaves ``arr_1`` out.

    Raises:
        FileExistsError: there is such a file.
        OSError: the disk is full or not writable; nothing is left.
    """
    rows = iter(batches)
    first = next(rows)
    with _new(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with _member(archive, "arr_0.npy", first.dtype, (count, *first.shape[1:])) as file:
            written = 0
            for batch in chain([first], rows):
                file.write(np.ascontiguousarray(batch).data)
                written += len(batch)
            assert written == count, (written, count)  # the header has been written
        if labels is not None:
            classes = np.asarray(labels, np.int64)
            with _member(archive, "arr_1.npy", classes.dtype, classes.shape) as file:
                file.write(classes.data)


def write_grid(path: Path, batches: Iterable[Pixels], count: int, columns: int = 0) -> None:
    """Write all images side by side as one PNG, row by row; places left over are white.

    Args:
        path: ends in ``.png`` and does not exist.
        batches: ``(B, H, W, 3)`` bytes.
        count: N, of all batches together.
        columns: images a row; 0 makes about as many columns as rows.

    Raises:
        FileExistsError: there is such a file.
        OSError: the disk is full or not writable; nothing is left.
    """
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    canvas: Pixels | None = None
    for place, pixels in enumerate(chain.from_iterable(batches)):
        height, width, colours = pixels.shape
        if canvas is None:
            rows = -(-count // columns)
            canvas = np.full((rows * height, columns * width, colours), 255, np.uint8)
        top, left = place // columns * height, place % columns * width
        canvas[top : top + height, left : left + width] = pixels
    assert canvas is not None  # there is a seed at least
    with _new(path) as partial:
        Image.fromarray(canvas).save(partial, format="png")


class PngFolder:
    """A folder of one PNG a seed, ``000000.png``, that an interrupted run goes on to fill.

    ``samples.json`` in it says how the images are made. Several processes may write to the folder,
    each images of its own.

    Args:
        folder: made by :meth:`claim`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, settings: Mapping[str, Any], seeds: Iterable[int]) -> None:
        """Make the folder, or check that what it holds is part of what is to be made.

        Args:
            settings: JSON data; with them, an image is a function of its seed.
            seeds: those of the images to be made.

        Raises:
            SampleFolderError: it holds images that were made otherwise (the first differing setting
                is named) or of other seeds, or files that are no samples.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise SampleFolderError(
                f"{self.folder} is a file; give a folder, or a file that ends in .npz, .zip or .png"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        tidy(path)
        for partial in self.folder.glob(".*.png.tmp"):
            partial.unlink(missing_ok=True)
        others = sorted(set(os.listdir(self.folder)) - {SETTINGS})
        if not path.exists():
            if others:
                raise SampleFolderError(
                    f"{self.folder} holds files and no {SETTINGS}, so they are no samples of this "
                    "command; choose a new folder"
                )
            write_text(path, json.dumps(settings, indent=2) + "\n")
            return
        if difference := first_difference(self._read(path), json.loads(json.dumps(settings))):
            raise SampleFolderError(
                f"{self.folder} holds images that were made otherwise: {difference}; choose a new "
                "folder, or delete this one"
            )
        if foreign := set(others) - {_name(seed) for seed in seeds}:
            raise SampleFolderError(
                f"{self.folder} holds {min(foreign)}, which is of none of the seeds asked for, and "
                f"{len(foreign) - 1} more; add their seeds or choose a new folder"
            )

    def there(self) -> set[str]:
        """Names of the images that are there to their end; a power cut may leave a part."""
        with os.scandir(self.folder) as entries:
            return {each.name for each in entries if _has_end(Path(each.path))}

    def missing(self, seeds: Iterable[int], there: set[str]) -> list[int]:
        """Those of some seeds whose images are not among the names that are there."""
        return [seed for seed in seeds if _name(seed) not in there]

    def write(self, seed: int, pixels: Pixels) -> None:
        """Write an image ``(H, W, 3)``; whenever this is killed, there is no half file of its name.

        Raises:
            OSError: the disk is full or not writable.
        """
        path = self.folder / _name(seed)
        partial = path.with_name(f".{path.name}.tmp")
        try:
            Image.fromarray(pixels).save(partial, format="png")
            partial.replace(path)  # not flushed: for a file each that would take minutes
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise SampleFolderError(f"{path} is damaged; choose a new folder") from None


def check_free(path: Path) -> None:
    """Refuse to replace what is there.

    Raises:
        FileExistsError: something is.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; delete it or choose another name")


@contextmanager
def _new(path: Path) -> Iterator[Path]:
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path)
    with replacing(path, new=True) as partial:
        yield partial


@contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[BinaryIO]:
    """An array in an npz, to be filled with its bytes."""
    entry = zipfile.ZipInfo(name)  # dated 1980: the same arrays give the same file
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(cast(BinaryIO, file), header)
        yield cast(BinaryIO, file)


def _has_end(path: Path) -> bool:
    """Whether a file ends as a PNG does; one short read, for folders of many."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < len(_END):
            return False
        file.seek(-len(_END), os.SEEK_END)
        return file.read() == _END


def _name(seed: int) -> str:
    return f"{seed:06d}.png"
