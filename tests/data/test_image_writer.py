"""Image archives: EDM's layout, read by others, byte for byte the same, whole or not there."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen.data import ImageZip, ImageZipError, iterate_image_zip, write_image_zip
from deqgen.data.image_writer import Pixels


def pictures(count: int, side: int = 8) -> list[Pixels]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def test_the_layout_is_that_of_edm(tmp_path: Path) -> None:
    """Read as EDM's loader does: zipfile and Pillow, names from the archive, labels by name."""
    images, labels = pictures(1003), [i % 7 for i in range(1003)]
    assert write_image_zip(tmp_path / "new" / "d.zip", images, labels) == 1003
    with zipfile.ZipFile(tmp_path / "new" / "d.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))
        assert set(archive.namelist()) == {*names, "dataset.json"}
        assert names[0] == "00000/img00000000.png" and names[-1] == "00001/img00001002.png"
        assert json.loads(archive.read("dataset.json"))["labels"] == [
            [name, label] for name, label in zip(names, labels, strict=True)
        ]
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        for name, image in zip(names, images, strict=True):
            content = archive.read(name)
            assert len(content) > image.size  # not compressed
            with Image.open(io.BytesIO(content)) as picture:
                assert (picture.format, picture.mode) == ("PNG", "RGB")
                assert np.array_equal(np.asarray(picture), image)


def test_the_round_trip_keeps_every_pixel(tmp_path: Path) -> None:
    images, labels = pictures(5), [3, 1, 4, 1, 5]
    write_image_zip(tmp_path / "d.zip", images, labels)
    data = ImageZip(tmp_path / "d.zip")
    assert torch.equal(data.images, torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    assert data.labels.tolist() == labels
    batches = list(iterate_image_zip(tmp_path / "d.zip", batch_size=2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_the_development_data_again(tmp_path: Path, shared: Path) -> None:
    data = ImageZip(shared / "imagenet-64x64-sample1000.zip")
    few = data.images[:20].permute(0, 2, 3, 1).contiguous().numpy()
    write_image_zip(tmp_path / "d.zip", few, data.labels[:20].tolist())
    again = ImageZip(tmp_path / "d.zip")
    assert torch.equal(again.images, data.images[:20])
    assert torch.equal(again.labels, data.labels[:20])


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_image_zip(tmp_path / name, pictures(3), [0, 1, 2])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_no_classes_are_null_as_in_edm(tmp_path: Path) -> None:
    write_image_zip(tmp_path / "d.zip", pictures(2), None)
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
    data = ImageZip(tmp_path / "d.zip")
    assert len(data.images) == 2 and data.labels.tolist() == [0, 0]


def failing() -> Iterator[Pixels]:
    yield from pictures(2)
    raise OSError("the disk went away")


def test_a_failure_leaves_the_old_archive(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    write_image_zip(path, pictures(1), [0])
    (tmp_path / ".d.zip.0123abcd.tmp").write_bytes(b"of a killed process")
    before = path.read_bytes()
    with pytest.raises(OSError, match="the disk went away"):
        write_image_zip(path, failing(), [0, 1, 2])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([], [], "there are no images to write"),
        (pictures(2), [0], "2 images need as many labels, got 1"),
        (pictures(1) + pictures(1, 4), [0, 0], r"image 1 is uint8 of shape \(4, 4, 3\)"),
        ([np.zeros((4, 8, 3), np.uint8)], [0], r"image 0 is uint8 of shape \(4, 8, 3\)"),
        ([np.zeros((4, 4), np.uint8)], [0], "image 0 is uint8 of shape"),
        ([np.zeros((4, 4, 3))], [0], "image 0 is float64"),
    ],
    ids=["none", "labels", "sizes", "oblong", "grey", "float"],
)
def test_bad_images_are_one_sentence(
    images: list[Pixels], labels: list[int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_image_zip(tmp_path / "d.zip", images, labels)
    assert list(tmp_path.iterdir()) == []


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a \.zip file, got '.*d\.tar'"):
        write_image_zip(tmp_path / "d.tar", pictures(1), [0])


def test_a_truncated_archive_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    write_image_zip(path, pictures(3), [0, 1, 2])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageZipError, match=r"d\.zip is damaged"):
        ImageZip(path)


def test_a_flipped_byte_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    write_image_zip(path, pictures(3), [0, 1, 2])
    content = bytearray(path.read_bytes())
    content[150] ^= 1  # among the first image's pixels
    path.write_bytes(content)
    with pytest.raises(ImageZipError, match=r"00000/img00000000\.png"):
        ImageZip(path)
