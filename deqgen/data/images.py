"""Read EDM-style image zips: square PNG or JPEG files beside a ``dataset.json`` of labels."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class ImageZipError(ValueError):
    """The archive is missing, damaged, or not laid out as EDM writes it."""


class ImageZip:
    """A labelled image data set held in memory as bytes.

    The layout is EDM's (arXiv 2206.00364, ``dataset_tool``): images of one size, and at the root a
    ``dataset.json`` with ``{"labels": [["00000/img00000000.png", 6], ...]}``.

    Attributes:
        images: uint8, ``(N, C, H, W)``, in the sorted order of the file names.
        labels: int64, ``(N,)``.

    Raises:
        ImageZipError: no such file, not a zip, no ``dataset.json``, or images of several sizes.
    """

    images: Tensor
    labels: Tensor

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ImageZipError(f"there is no image archive at {self.path}")
        try:
            with zipfile.ZipFile(self.path) as archive:
                labels = self._read_labels(archive)
                images = [self._read_image(archive, name) for name in sorted(labels)]
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ImageZipError(
                f"{self.path} is damaged or not an image archive: {error}"
            ) from None
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise ImageZipError(
                f"{self.path} should hold images of one shape, found {sorted(shapes)[:4]}"
            )
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.tensor([labels[name] for name in sorted(labels)], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def _read_labels(self, archive: zipfile.ZipFile) -> dict[str, int]:
        try:
            rows = json.loads(archive.read("dataset.json"))["labels"]
            labels = {str(name): int(label) for name, label in rows}
        except (KeyError, TypeError, ValueError):
            raise ImageZipError(
                f'{self.path} has no dataset.json of the form {{"labels": [[name, class], ...]}}'
            ) from None
        if not labels:
            raise ImageZipError(f"{self.path} lists no images")
        return labels

    def _read_image(self, archive: zipfile.ZipFile, name: str) -> np.ndarray:
        try:
            stream = archive.open(name)
        except KeyError:
            raise ImageZipError(f"{self.path} lists {name} but does not hold it") from None
        try:
            with stream, Image.open(stream) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:  # Pillow's word for what it cannot read, cut short or not an image
            raise ImageZipError(f"{name} in {self.path} cannot be read: {error}") from None


def to_float(images: Tensor) -> Tensor:
    """Map bytes 0..255 to floats in [-1, 1], the range in which every model here works."""
    return images.to(torch.float32).div(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Map floats in [-1, 1] to bytes; values outside are clamped."""
    return images.to(torch.float32).mul(127.5).add_(128.0).clamp_(0, 255).to(torch.uint8)
