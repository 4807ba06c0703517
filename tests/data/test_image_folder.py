"""Folders of images: which files, which classes, ADM's crop, and every kind of pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deqgen.data import ImageFolder, ImageSourceError, center_crop
from deqgen.data.image_folder import READ_AHEAD, read_rgb

RED = (200, 30, 40)


def save(path: Path, colour: Any = RED, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_subfolders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    wanted = [
        save(tmp_path / "a" / "z.png"),
        save(tmp_path / "b" / "1.JPG"),
        save(tmp_path / "b" / "deep" / "2.webp"),
    ]
    (tmp_path / "b" / "notes.txt").write_text("passed over")
    save(tmp_path / ".thumbnails" / "x.png")
    save(tmp_path / "b" / ".hidden.png")
    found = ImageFolder.find(tmp_path)
    assert list(found.paths) == wanted
    assert (found.labels, found.classes) == ((0, 1, 1), ("a", "b"))


def test_without_subfolders_there_are_no_classes(tmp_path: Path) -> None:
    paths = [save(tmp_path / name) for name in ("a.png", "b.png")]
    found = ImageFolder.find(tmp_path)
    assert (list(found.paths), found.labels, found.classes) == (paths, None, ())


def test_what_cannot_be_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(ImageSourceError, match=r"there is no folder of images at .*nowhere"):
        ImageFolder.find(tmp_path / "nowhere")
    with pytest.raises(ImageSourceError, match="holds no images"):
        ImageFolder.find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageSourceError, match="empty holds no images, and every subfolder"):
        ImageFolder.find(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(ImageSourceError, match=r"\(a\.png and empty/\)"):
        ImageFolder.find(tmp_path)


def test_images_come_in_order_whatever_finishes_first(tmp_path: Path) -> None:
    count = READ_AHEAD + 20
    for i in range(count):
        save(tmp_path / f"{i:03d}.png", (i, i, i), (300 if i == 0 else 5, 300 if i == 0 else 5))
    pixels = list(ImageFolder.find(tmp_path).cropped(4))
    assert [int(image[0, 0, 0]) for image in pixels] == list(range(count))
    assert all(image.shape == (4, 4, 3) and image.dtype == np.uint8 for image in pixels)


def test_one_bad_file_is_named_and_stops_the_rest(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"text")
    with pytest.raises(ImageSourceError, match=r"3\.png cannot be read as an image"):
        list(ImageFolder.find(tmp_path).cropped(4))


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 20))
def test_the_crop_is_a_square_of_the_size(width: int, height: int, size: int) -> None:
    assert center_crop(Image.new("RGB", (width, height)), size).size == (size, size)


def test_the_middle_is_kept() -> None:
    """Columns 0..15 of 4 rows: the middle four are 6..9, at a scale of one."""
    row = np.arange(16, dtype=np.uint8) * 10
    wide = np.broadcast_to(row[None, :, None], (4, 16, 3))
    kept = np.asarray(center_crop(Image.fromarray(wide.copy()), 4))
    assert kept[0, :, 0].tolist() == [60, 70, 80, 90]
    tall = np.broadcast_to(row[:, None, None], (16, 4, 3))
    kept = np.asarray(center_crop(Image.fromarray(tall.copy()), 4))
    assert kept[:, 0, 0].tolist() == [60, 70, 80, 90]


def test_large_images_are_averaged_first() -> None:
    """A power of two larger: nothing but means of blocks, which a bicubic step would not give."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    means = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(center_crop(image, 8)) - means).max() <= 2  # rounded four times
    at_once = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC))
    assert np.abs(at_once - means).max() > 10


def test_between_one_and_two_times_the_size_is_one_bicubic_step() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 13, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    wanted = image.resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(center_crop(image, 8)), np.asarray(wanted))


@pytest.mark.parametrize(
    ("mode", "colour", "name", "shown"),
    [
        ("L", 90, "a.png", (90, 90, 90)),
        ("1", 1, "a.png", (255, 255, 255)),
        ("P", 0, "a.gif", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        ("RGBA", (*RED, 255), "a.png", RED),
        ("RGBA", (*RED, 0), "a.png", (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), "a.png", (127, 127, 127)),
        ("LA", (90, 0), "a.png", (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel(
    mode: str, colour: Any, name: str, shown: tuple[int, int, int], tmp_path: Path
) -> None:
    image = read_rgb(save(tmp_path / name, colour, mode=mode))
    assert (image.mode, image.getpixel((1, 1))) == ("RGB", shown)


def test_a_cmyk_jpeg_and_a_transparent_palette(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", (0, 255, 255, 0), (16, 16), "CMYK")
    red, green, blue = np.asarray(read_rgb(path))[8, 8].tolist()
    assert red > 200 > 60 > max(green, blue)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "clear.png", transparency=bytes([255, 0]))
    assert read_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    palette.save(tmp_path / "opaque.png")
    assert read_rgb(tmp_path / "opaque.png").getpixel((0, 0)) == (10, 20, 30)


def noisy_jpeg(path: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 30, 700, 2000])
def test_a_truncated_file_is_one_sentence(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(noisy_jpeg(path)[:kept])
    with pytest.raises(ImageSourceError, match=r"a\.jpg cannot be read as an image"):
        read_rgb(path)


def test_a_damaged_png_is_one_sentence(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", size=(50, 50))
    content = path.read_bytes()
    at = content.index(b"IDAT")
    path.write_bytes(content[: at + 8] + b"\0" * 8 + content[at + 16 :])
    with pytest.raises(ImageSourceError, match=r"a\.png cannot be read as an image"):
        read_rgb(path)


def test_a_missing_file_and_sixteen_bits(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ImageSourceError, match=r"gone\.png .*: No such file or directory"):
        list(ImageFolder.find(tmp_path).cropped(4))
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(deep)
    with pytest.raises(ImageSourceError, match="of mode I;16, and images of eight bits"):
        read_rgb(deep)
