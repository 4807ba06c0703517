from __future__ import annotations

import io
import json
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
    ],
)
def test_a_bad_archive_is_one_sentence(
    tmp_path: Path, files: dict[str, bytes], labels: Any, message: str
) -> None:
    with pytest.raises(ImageZipError, match=message):
        ImageZip(archive(tmp_path / "d.zip", files, labels))


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
