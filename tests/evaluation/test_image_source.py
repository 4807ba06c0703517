"""Images in files: the same images from each kind, piece by piece, and files that are none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from deqgen.data import ImageSourceError, ImageZipError, to_uint8, write_image_zip
from deqgen.evaluation import EvaluationInputError, is_images, open_images
from tests.evaluation.patterns import patterns


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return to_uint8(patterns(11))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pixels: Tensor) -> Path:
    """The same images as waves.zip, waves.npz, packed.npz and two folders."""
    place = tmp_path_factory.mktemp("images")
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    write_image_zip(place / "waves.zip", rows, None)
    np.savez(place / "waves.npz", rows, np.arange(11))
    np.savez_compressed(place / "packed.npz", rows)
    for index, image in enumerate(rows):
        for path in (place / f"flat/{index:06d}.png", place / f"deep/{index // 4}/{index:06d}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return place


@pytest.mark.parametrize("name", ["waves.zip", "waves.npz", "packed.npz", "flat", "deep"])
def test_every_kind_gives_the_same_images(folder: Path, pixels: Tensor, name: str) -> None:
    assert is_images(folder / name)
    source = open_images(folder / name)
    assert (source.name, source.count) == (name, 11)
    batches = list(source.batches(4, 11))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert torch.equal(torch.cat(batches), pixels)
    few = source.order(6)
    assert torch.equal(torch.cat(list(source.batches(4, 6))), pixels[few.sort().values])
    assert torch.equal(source.in_order(pixels[few.sort().values]), pixels[few])
    assert torch.equal(source.in_order(pixels), pixels[source.order(11)])
    with pytest.raises(EvaluationInputError, match=f"{name} holds 11 images, not 12"):
        list(source.batches(4, 12))


def test_the_order_is_a_fixed_permutation_of_which_fewer_are_the_beginning(folder: Path) -> None:
    source = open_images(folder / "waves.npz")
    whole = source.order(11)
    assert whole.tolist() == open_images(folder / "flat").order(11).tolist()
    assert sorted(whole.tolist()) == list(range(11)) != whole.tolist()
    assert source.order(6).tolist() == whole[:6].tolist()


def test_models_and_statistics_are_no_images(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "samples" / "a.png")
    for name in ("stats.npz", "run", "none", "model.safetensors"):
        assert not is_images(tmp_path / name)


def test_files_that_cannot_be_measured(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageZipError, match=r"there is no image archive"):
        open_images(tmp_path / "none.zip")
    with pytest.raises(EvaluationInputError, match=r"there is no file of images at .*none.npz"):
        open_images(tmp_path / "none.npz")
    with pytest.raises(EvaluationInputError, match=r"a\.txt is no source of images"):
        open_images(tmp_path / "a.txt")
    with pytest.raises(ImageSourceError, match=r"holds no images"):
        open_images(tmp_path)
    path = tmp_path / "a.npz"
    for content in (
        np.zeros((3, 8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((3, 8, 8, 4), np.uint8),
    ):
        np.savez(path, content)
        with pytest.raises(EvaluationInputError, match=r"must be uint8 \(N, H, W, 3\).*got"):
            open_images(path)
    np.savez(path, np.asfortranarray(np.zeros((3, 8, 8, 3), np.uint8)))
    with pytest.raises(EvaluationInputError, match=r"Fortran"):
        open_images(path)
    np.savez(path, np.array([{}], dtype=object))  # a pickle inside: its header alone is read
    with pytest.raises(EvaluationInputError, match=r"got object \(1,\)"):
        open_images(path)
    for shape in ((10**12, 8, 8, 3), (10**12, 0, 0, 3)):  # nothing is made room for
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
        with pytest.raises(EvaluationInputError, match=r"bytes and cannot hold images of shape"):
            open_images(path)
    for bad in (b"", b"hello", (folder / "waves.npz").read_bytes()[:200]):
        path.write_bytes(bad)
        with pytest.raises(EvaluationInputError, match=r"a\.npz is no \.npz with images"):
            open_images(path)


def test_an_array_that_is_cut_short_or_of_no_header(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", np.zeros((100, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", (tmp_path / "a.npy").read_bytes()[:-500])
    with pytest.raises(
        EvaluationInputError, match=r"cut short: arr_0 has not all of its 100 images"
    ):
        list(open_images(path).batches(32, 100))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"something else")
    with pytest.raises(EvaluationInputError, match=r"no .npz with images"):
        open_images(path)


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    for name, side in (("a.png", 8), ("b.png", 9)):
        Image.new("RGB", (side, side)).save(tmp_path / name)
    with pytest.raises(EvaluationInputError, match=r"a\.png in .* is \(8, 8, 3\) and b\.png \(9"):
        list(open_images(tmp_path).batches(2, 2))
