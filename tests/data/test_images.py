from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen.data import ImageZip, ImageZipError, to_float, to_uint8


def png(value: int, side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


def archive(path: Path, files: dict[str, bytes], labels: Any) -> Path:
    with zipfile.ZipFile(path, "w") as stored:
        for name, content in files.items():
            stored.writestr(name, content)
        if labels is not None:
            stored.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {"00000/b.png": png(20), "00000/a.png": png(10)}
    labels = [["00000/b.png", 7], ["00000/a.png", 3]]
    data = ImageZip(archive(tmp_path / "d.zip", files, labels))
    assert data.images.shape == (2, 3, 4, 4) and data.images.dtype == torch.uint8
    assert data.images[:, 0, 0, 0].tolist() == [10, 20]
    assert data.labels.tolist() == [3, 7]


def test_the_development_data(shared: Path) -> None:
    data = ImageZip(shared / "imagenet-64x64-sample1000.zip")
    assert data.images.shape == (1000, 3, 64, 64)
    assert data.labels.tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        ({"a.png": png(1)}, None, "no dataset.json"),
        ({"a.png": png(1)}, [], "lists no images"),
        ({"a.png": png(1)}, [["b.png", 0]], "lists b.png but does not hold it"),
        ({"a.png": b"text"}, [["a.png", 0]], "a.png in .* cannot be read"),
        ({"a.png": png(1)[:50]}, [["a.png", 0]], "a.png in .* cannot be read"),
        ({"a.png": png(1), "b.png": png(1, 8)}, [["a.png", 0], ["b.png", 0]], "one shape"),
        ({"a.png": png(1)}, [["a.png", 1], ["a.png", 7]], "lists a.png twice"),
        ({"a.png": png(1)}, [["a.png", 2.9]], r"a class from 0 on .* gives \['a.png', 2.9\]"),
        ({"a.png": png(1)}, [["a.png", -5]], r"a class from 0 on .* gives \['a.png', -5\]"),
        ({"a.png": png(1)}, [["a.png", 10**20]], "a class from 0 on"),
        ({"a.png": png(1)}, [["a.png", True]], "a class from 0 on"),
        ({"a.png": png(1)}, [[["a.png"], 0]], "should give a name"),
        ({"a.png": png(1)}, [["a.png", 0, 0]], "no dataset.json of the form"),
        ({"a.png": png(1)}, "-" * 9000, "dataset.json in .* has 90.. bytes, and 4.* are enough"),
    ],
)
def test_a_bad_archive_is_one_sentence(
    tmp_path: Path, files: dict[str, bytes], labels: Any, message: str
) -> None:
    with pytest.raises(ImageZipError, match=message):
        ImageZip(archive(tmp_path / "d.zip", files, labels))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"


def test_no_program_is_started_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands what begins like EPS to Ghostscript, whatever it is called."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked for yet
    with pytest.raises(ImageZipError, match=r"a\.png in .* cannot be read as an image"):
        ImageZip(archive(tmp_path / "d.zip", {"a.png": EPS}, [["a.png", 0]]))
    assert not (tmp_path / "ran").exists()


def test_images_that_would_be_clipped_or_fill_the_memory(tmp_path: Path) -> None:
    deep, large = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(deep, format="png")
    Image.new("1", (14_000, 14_000)).save(large, format="png")
    for content, message in (
        (deep.getvalue(), "of mode I;16, and images of eight bits a channel"),
        (large.getvalue(), "decompression bomb"),
    ):
        path = archive(tmp_path / "d.zip", {"a.png": content}, [["a.png", 0]])
        with pytest.raises(ImageZipError, match=rf"a\.png in .* {message}"):
            ImageZip(path)


def test_an_encrypted_archive_is_one_sentence(tmp_path: Path) -> None:
    path = archive(tmp_path / "d.zip", {"a.png": png(1)}, [["a.png", 0]])
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(mark), bytes(content)):
            content[found.start() + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ImageZipError, match=r"d\.zip is encrypted"):
        ImageZip(path)


def test_the_pixels_of_rgb_and_jpeg_are_those_that_pillow_reads(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for format, mode in (("png", "RGB"), ("jpeg", "RGB"), ("png", "L"), ("png", "P")):
        stream = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(stream, format=format)
        data = ImageZip(archive(tmp_path / "d.zip", {"a.png": stream.getvalue()}, [["a.png", 0]]))
        with Image.open(stream) as image:
            wanted = np.asarray(image.convert("RGB"))
        assert np.array_equal(data.images[0].permute(1, 2, 0), wanted)


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ImageZipError, match="no image archive at"):
        ImageZip(tmp_path / "none.zip")
    (tmp_path / "truncated.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ImageZipError, match="damaged"):
        ImageZip(tmp_path / "truncated.zip")


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).aminmax() == (-1.0, 1.0)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]
