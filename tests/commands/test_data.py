"""deqgen data: archives and statistics from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deqgen import cli
from deqgen.data import ImageZip
from deqgen.evaluation import load_statistics
from tests.data.test_cifar10 import NAMES, archive, binary, rows


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def save(path: Path, size: tuple[int, int] = (70, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_cifar10_and_its_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = archive(
        tmp_path / "cifar.tar.gz",
        {f"{name}.bin": binary(*rows(i, 8)) for i, name in enumerate(NAMES)},
    )
    out = tmp_path / "new" / "c.zip"
    assert cli.main(["data", "cifar10", str(source), str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 40 images of 32x32, ")
    assert ImageZip(out).images.shape == (40, 3, 32, 32)
    assert cli.main(["data", "cifar10", str(source), str(out), "--split", "test"]) == 0
    data = ImageZip(out)
    assert np.array_equal(data.images.reshape(8, -1), rows(5, 8)[0])
    assert data.labels.tolist() == rows(5, 8)[1]
    capsys.readouterr()
    assert cli.main(["data", "stats", str(out), str(tmp_path / "c.npz")]) == 0
    said = capsys.readouterr()
    assert "320 features of the CIFAR-10 classifier" in said.out and "not Inception's" in said.out
    assert said.err == ""
    assert load_statistics(tmp_path / "c.npz").images == 8
    assert load_statistics(tmp_path / "c.npz").split == "not stated"
    named = ["data", "stats", str(out), str(tmp_path / "d.npz"), "--split", "test of 2009"]
    assert cli.main(named) == 0
    assert load_statistics(tmp_path / "d.npz").split == "test of 2009"


def test_imagenet_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("n02/b.JPEG", "n01/a.JPEG", "n02/a.JPEG"):
        save(tmp_path / "train" / name)
    out = tmp_path / "i.zip"
    assert cli.main(["data", "imagenet64", str(tmp_path / "train"), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 images of 64x64, 2 classes.\n"
    data = ImageZip(out)
    assert data.images.shape == (3, 3, 64, 64) and data.labels.tolist() == [0, 1, 1]
    assert cli.main(["data", "folder", str(tmp_path / "train/n02"), str(out), "--size", "8"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 images of 8x8, no classes.\n"
    assert ImageZip(out).images.shape == (2, 3, 8, 8)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "flat" / "a.png")
    flat, out = str(tmp_path / "flat"), str(tmp_path / "out.zip")
    for arguments, says in (
        (["imagenet64", flat, out], "classes are its synset folders"),
        (["folder", flat, out], "--size"),
        (["folder", flat, out, "--size", "0"], "--size must be at least 1, got 0"),
        (["folder", flat, str(tmp_path / "out"), "--size", "8"], "is a .zip file"),
        (["folder", str(tmp_path / "none"), out, "--size", "8"], "there is no folder of images"),
        (["cifar10", str(tmp_path / "none"), out], "there is no file at"),
        (["cifar10", flat, out, "--split", "valid"], "'valid'"),
        (["stats", out, str(tmp_path / "s.npz")], "there is no image archive at"),
        (["stats", out, str(tmp_path / "s")], "are a .npz file"),
        (["stats", out, str(tmp_path / "s.npz"), "--features", "cifar"], "Did you mean 'cifar10'?"),
    ):
        assert cli.main(["data", *arguments]) == 2
        assert says in told(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["flat"]
