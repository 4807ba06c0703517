"""A folder of images of any size, cropped to squares of one size.

Letters: S side.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from deqgen.data.image_writer import Pixels

# Formats that Pillow decodes by itself; others start a program (EPS) or are rarely photographs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

READ_AHEAD = 64  # images, decoded before they are asked for

# Modes of eight bits a channel or fewer.
_OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


class ImageSourceError(ValueError):
    """Images that an archive should be made of cannot be found or read; the message names them."""


@dataclass(frozen=True)
class ImageFolder:
    """The image files below a folder; each subfolder, if there are any, is a class.

    Args:
        paths: of the images, class by class and by name.
        labels: of the images, the place of their subfolder in sorted order; None without
            subfolders.
        classes: names of the subfolders, sorted.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]

    @classmethod
    def find(cls, folder: str | Path) -> ImageFolder:
        """List the images of ``folder``: files with an ending of ``ENDINGS``, at any depth.

        Other files, and names that begin with a dot, are passed over.

        Raises:
            ImageSourceError: no such folder, no images, a subfolder without images (the classes
                after it would be misnumbered), or images both in subfolders and beside them.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ImageSourceError(f"there is no folder of images at {folder}")
        beside = _images(folder, deep=False)
        subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        if beside and subfolders:
            raise ImageSourceError(
                f"{folder} holds images beside its subfolders ({beside[0].name} and "
                f"{subfolders[0].name}/): either every subfolder is a class or there are none"
            )
        if beside:
            return cls(tuple(beside), None, ())
        paths: list[Path] = []
        labels: list[int] = []
        for label, subfolder in enumerate(subfolders):
            found = _images(subfolder, deep=True)
            if not found:
                raise ImageSourceError(
                    f"{subfolder} holds no images, and every subfolder of {folder} is a class"
                )
            paths += found
            labels += [label] * len(found)
        if not paths:
            raise ImageSourceError(f"{folder} holds no images ({', '.join(ENDINGS)})")
        return cls(tuple(paths), tuple(labels), tuple(p.name for p in subfolders))

    def cropped(self, size: int) -> Iterator[Pixels]:
        """The images in order, uint8 ``(size, size, 3)``, by :func:`center_crop`.

        Several are read at a time: Pillow decodes and resizes without holding the interpreter.

        Raises:
            ImageSourceError: an image that cannot be read; the others are then not.
        """
        waiting: deque[Future[Pixels]] = deque()
        with ThreadPoolExecutor() as pool:
            try:
                for path in self.paths:
                    waiting.append(pool.submit(_read_cropped, path, size))
                    if len(waiting) > READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and cut the middle out, as ADM prepares ImageNet.

    Halved by averaging 2x2 pixels for as long as the shorter side is twice ``size`` or more, then
    resized bicubically (Dhariwal and Nichol 2021, arXiv 2105.05233, in their data loader): a single
    step from large to small would skip pixels or blur. A smaller image is enlarged.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    width, height = image.size
    scale = size / min(width, height)
    wide, high = round(width * scale), round(height * scale)
    image = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_rgb(source: Path | IO[bytes], name: str | None = None) -> Image.Image:
    """Read an image file in the RGB colours that it shows; whatever is transparent becomes white.

    Grey, palette and CMYK images are converted. The pixels are taken as stored: a note that a
    camera held it sideways is not followed, as ADM and EDM do not.

    Args:
        source: a file, or an open one.
        name: what messages call it; its path by default.

    Raises:
        ImageSourceError: the file cannot be read, is damaged or cut short, is of a format outside
            ``FORMATS``, or has more than eight bits a channel, which a conversion would clip.
    """
    name = name or str(source)
    try:
        with Image.open(source, formats=FORMATS) as file:
            image: Image.Image = file
            if image.mode not in _OPAQUE + _TRANSPARENT:
                raise ImageSourceError(
                    f"{name} has pixels of mode {image.mode}, and images of eight bits a channel "
                    "are expected"
                )
            if image.mode in _TRANSPARENT or "transparency" in image.info:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            shown: Image.Image = image.convert("RGB")
            return shown
    except (ImageSourceError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageSourceError(
            f"{name} cannot be read as an image: it is none of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # a damaged file makes the readers of its format raise anything
        reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else error
        raise ImageSourceError(f"{name} cannot be read as an image: {reason}") from None


def _read_cropped(path: Path, size: int) -> Pixels:
    return np.asarray(center_crop(read_rgb(path), size))


def _images(folder: Path, *, deep: bool) -> list[Path]:
    """Image files of a folder, or at any depth below it, sorted."""
    found: list[Path] = []
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if deep and name[0] != "."]
        paths = (Path(place, name) for name in names if name[0] != ".")
        found += [path for path in paths if path.suffix.lower() in ENDINGS]
    return sorted(found)
