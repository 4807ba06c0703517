"""Files of generated images: their formats, and that they are whole or not there."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deqgen.data.sample_writers import (
    PngFolder,
    SampleFolderError,
    to_pixels,
    write_grid,
    write_npz,
)

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = {"model": "a", "rtol": 0.5, "classes": [0, 1]}


def pixels(count: int, side: int = 4, first: int = 0) -> np.ndarray:
    generator = np.random.default_rng(first)
    return generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@contextmanager
def small_disk(room: int) -> Iterator[None]:
    """Files end at so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_pixels_are_bytes_of_three_colours() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0, 9.0]).reshape(1, 1, 2, 2)
    grey = to_pixels(image)
    assert grey.dtype == np.uint8 and grey.flags.c_contiguous
    assert grey[0, :, :, 0].tolist() == [[0, 128], [255, 255]]
    assert (grey == grey[..., :1]).all() and grey.shape == (1, 2, 2, 3)
    colours = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)
    assert np.array_equal(to_pixels(colours)[0, 1, 0], to_pixels(colours[:, :, 1:, :1])[0, 0, 0])


@pytest.mark.parametrize("labels", [None, [3, 1, 2, 0, 9, 9, 4]])
def test_an_npz_is_what_numpy_would_have_written(labels: list[int] | None, tmp_path: Path) -> None:
    images = pixels(7)
    write_npz(tmp_path / "new" / "a.npz", np.split(images, [3, 6]), 7, labels)
    with np.load(tmp_path / "new" / "a.npz") as found:
        assert found.files == ["arr_0"] + (["arr_1"] if labels else [])
        assert np.array_equal(found["arr_0"], images) and found["arr_0"].dtype == np.uint8
        if labels:
            assert found["arr_1"].tolist() == labels and found["arr_1"].dtype == np.int64
    write_npz(tmp_path / "b.npz", [images], 7, labels)  # other batches, the same file
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "new" / "a.npz").read_bytes()


def test_latents_keep_their_numbers(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((5, 4, 2, 2)).astype(np.float32)
    write_npz(tmp_path / "a.npz", np.split(latents, [2]), 5)
    with np.load(tmp_path / "a.npz") as found:
        assert np.array_equal(found["arr_0"], latents) and found["arr_0"].dtype == np.float32


def test_a_grid_in_rows(tmp_path: Path) -> None:
    images = pixels(5)
    for columns, shape in ((0, (8, 12)), (2, (12, 8)), (9, (4, 20))):
        path = tmp_path / f"{columns}.png"
        write_grid(path, np.split(images, [2]), 5, columns)
        grid = np.asarray(Image.open(path))
        assert grid.shape == (*shape, 3)
        wide = shape[1] // 4
        for place, image in enumerate(images):
            top, left = place // wide * 4, place % wide * 4
            assert np.array_equal(grid[top : top + 4, left : left + 4], image)
        assert (grid[:, :][-4:, 4 * (5 - 5 // wide * wide) :] == 255).all() or wide == 5


def test_memory_holds_a_few_batches(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def batches() -> Iterator[np.ndarray]:
        for each in range(9):
            assert sum(ref() is not None for ref in alive) <= 2
            batch = pixels(2, first=each)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    write_npz(tmp_path / "a.npz", batches(), 18)
    assert len(alive) == 9


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_nothing_is_replaced_and_nothing_half(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    write = write_npz if kind == "npz" else write_grid
    (tmp_path / f".a.{kind}.0123abcd.tmp").write_text("of a killed process")
    with small_disk(1000), pytest.raises(OSError) as full:
        write(path, [pixels(64)], 64)
    assert full.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
    write(path, [pixels(4)], 4)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f"a.{kind} exists already; delete it or choose"):
        write(path, [pixels(8)], 8)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from deqgen.data.sample_writers import write_npz

def batches():
    for _ in range(3):
        yield np.zeros((64, 32, 32, 3), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

write_npz(Path(sys.argv[1]), batches(), 256)
"""


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    code = [sys.executable, "-c", KILLED, str(tmp_path / "a.npz")]
    assert subprocess.run(code, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.npz.") and left.stat().st_size > 100_000
    write_npz(tmp_path / "a.npz", [pixels(4)], 4)  # which tidies up
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = PngFolder(tmp_path / "new" / "out")
    folder.claim(SETTINGS, range(3))
    assert folder.missing([0, 1, 2], folder.there()) == [0, 1, 2]
    images = pixels(3)
    folder.write(0, images[0])
    folder.write(2**32 - 1, images[1])
    (folder.folder / "000001.png").touch()  # what a power cut may leave
    (folder.folder / ".000002.png.tmp").write_text("killed")
    again = PngFolder(folder.folder)
    again.claim(SETTINGS, [0, 1, 2, 2**32 - 1])
    assert again.missing([0, 1, 2, 2**32 - 1], again.there()) == [1, 2]
    names = sorted(path.name for path in folder.folder.iterdir())
    assert names == ["000000.png", "000001.png", "4294967295.png", "samples.json"]
    assert np.array_equal(np.asarray(Image.open(folder.folder / "000000.png")), images[0])
    whole = (folder.folder / "000000.png").read_bytes()
    for part in (whole[:-1], whole[:11], whole[:-12]):
        (folder.folder / "000000.png").write_bytes(part)
        assert again.missing([0], again.there()) == [0]


def test_a_folder_of_other_images_is_refused(tmp_path: Path) -> None:
    folder = PngFolder(tmp_path / "out")
    folder.claim(SETTINGS, [0, 1])
    folder.write(1, pixels(1)[0])
    with pytest.raises(SampleFolderError, match=r"made otherwise: rtol was 0\.5 and is now 0\.1"):
        folder.claim({**SETTINGS, "rtol": 0.1}, [0, 1])
    with pytest.raises(
        SampleFolderError, match=r"holds 000001\.png, which is of none of the seeds"
    ):
        folder.claim(SETTINGS, [0])
    (tmp_path / "out" / "samples.json").write_text("{")
    with pytest.raises(SampleFolderError, match=r"samples\.json is damaged"):
        folder.claim(SETTINGS, [0, 1])
    (tmp_path / "out" / "samples.json").unlink()
    with pytest.raises(SampleFolderError, match=r"holds files and no samples\.json"):
        folder.claim(SETTINGS, [0, 1])
    with pytest.raises(SampleFolderError, match="is a file; give a folder, or a file that ends"):
        PngFolder(tmp_path / "out" / "000001.png").claim(SETTINGS, [0])


def test_a_full_disk_leaves_no_half_image(tmp_path: Path) -> None:
    folder = PngFolder(tmp_path)
    folder.claim(SETTINGS, [0])
    with small_disk(100), pytest.raises(OSError):
        folder.write(0, pixels(1, side=32)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]
