"""Write EDM-style image zips, the layout that :class:`deqgen.data.ImageZip` reads.

Letters: N images, S side.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from deqgen.atomic import replacing, tidy

Pixels = NDArray[np.uint8]


def write_image_zip(
    path: str | Path,
    images: Iterable[Pixels],
    labels: Sequence[int] | None,
    *,
    count: int | None = None,
    progress: bool = False,
) -> int:
    """Write images of one size and their classes as EDM's ``dataset_tool`` lays them out.

    Uncompressed PNG files ``00000/img00000000.png``, a thousand a folder, stored uncompressed, and
    ``dataset.json`` with their labels at the root (arXiv 2206.00364). The archive appears whole or
    not at all, holds no date, and the same images give the same bytes.

    Args:
        path: a ``.zip`` file, made or replaced; its folder is made.
        images: uint8, ``(S, S, 3)`` each, taken one at a time.
        labels: the class of each image, N in all; ``None`` writes ``null``, as EDM does for images
            without classes.
        count: N, for the progress bar of images without labels.
        progress: show a progress bar on a terminal.

    Returns:
        The number of images written.

    Raises:
        ValueError: another ending of the name, no images, an image of another shape than the first
            or not square, or another number of images than labels.
        OSError: the disk is full or not writable; what was there before is still there.
    """
    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise ValueError(f"an image archive is a .zip file, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path)
    total = count if labels is None else len(labels)
    bar = tqdm(images, total=total, unit="image", disable=None if progress else True)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        written = _write_images(archive, bar)
        if not written:
            raise ValueError(f"there are no images to write to {path}")
        if labels is not None and len(labels) != written:
            raise ValueError(f"{written} images need as many labels, got {len(labels)}")
        rows = None if labels is None else [[_name(i), int(c)] for i, c in enumerate(labels)]
        _store(archive, "dataset.json", json.dumps({"labels": rows}).encode())
    return written


def _write_images(archive: zipfile.ZipFile, images: Iterable[Pixels]) -> int:
    """Store every image; return how many there were."""
    index, first = 0, None
    for pixels in images:
        first = first or pixels.shape
        if pixels.shape != first or first != (first[0], first[0], 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"image {index} is {pixels.dtype} of shape {pixels.shape}; an archive holds uint8 "
                f"of one shape (S, S, 3), and its first image is {first}"
            )
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="png", compress_level=0)
        _store(archive, _name(index), stream.getvalue())
        index += 1
    return index


def _name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file without a trace of when and where it was written."""
    entry = zipfile.ZipInfo(name)  # 1980-01-01, the first date that a zip knows
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
