"""Checkpoints on a disk that is full or closed to us, and beside others who read them."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deqgen.training import Checkpoints
from deqgen.training import checkpoint as module
from tests.training.saver import save
from tests.training.test_checkpoint import check, folders


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 700, 3000, 5000])
def test_a_full_disk_leaves_the_old_ones(size: int, tmp_path: Path) -> None:
    save(tmp_path, 1, 100)
    with small_disk(size), pytest.raises(OSError, match="File too large") as caught:
        save(tmp_path, 1, 200)
    assert caught.value.errno == errno.EFBIG
    assert folders(tmp_path) == [100]
    check(tmp_path, 100)
    save(tmp_path, 1, 200)
    check(tmp_path, 200)


def test_a_disk_that_is_full_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 100)
    flush, calls = os.fsync, 0
    for fatal in range(1, 100):
        calls = 0

        def full(handle: int, fatal: int = fatal) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise OSError(errno.ENOSPC, "No space left on device")
            flush(handle)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            try:
                save(tmp_path, 1, 200)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            else:
                break
        loaded = Checkpoints(tmp_path).load()
        assert loaded is not None and loaded.images in (100, 200)
        if loaded.images == 200:  # failed after the rename
            shutil.rmtree(loaded.path)
            check(tmp_path, 100)
    assert calls >= 10
    save(tmp_path, 1, 300)  # which clears away what could not be deleted
    assert folders(tmp_path) == [300]


def test_without_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    save(tmp_path, 1, 100)
    assert os.listdir(tmp_path / "checkpoints") == ["000000000100"]
    check(tmp_path, 100)


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder that is not writable; root is somebody else meanwhile."""
    folder = Path(tempfile.mkdtemp())
    save(folder, 1, 100)
    (folder / "checkpoints").chmod(0o555)
    folder.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        (folder / "checkpoints").chmod(0o755)
        shutil.rmtree(folder)


def test_no_permission_to_write() -> None:
    with as_nobody() as folder:
        with pytest.raises(PermissionError):
            save(folder, 1, 200)
        check(folder, 100)
        assert folders(folder) == [100]


def test_no_permission_to_read_is_not_taken_for_damage() -> None:
    with as_nobody() as folder:
        state = folder / "checkpoints" / "000000000100" / "state.pt"
        if os.geteuid() == 65534 and state.stat().st_uid != 65534:
            os.seteuid(0)
            state.chmod(0)
            os.seteuid(65534)
        else:
            state.chmod(0)
        with pytest.raises(PermissionError):
            Checkpoints(folder).load()


def test_a_reader_follows_when_what_it_reads_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 100)
    read = module._read

    def overtaken(path: Path) -> Any:
        if path.name == "000000000100":
            save(tmp_path, 1, 200)
        return read(path)

    monkeypatch.setattr(module, "_read", overtaken)
    check(tmp_path, 200)


def test_a_folder_that_makes_way_while_one_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed, and gone for a newer one before it is looked at."""
    save(tmp_path, 1, 100)
    look, calls = Path.iterdir, []

    def slow(self: Path) -> Any:
        found = list(look(self))
        if self.name == "checkpoints" and not calls:
            calls.append(self)
            monkeypatch.undo()
            save(tmp_path, 1, 200)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", slow)
    loaded = Checkpoints(tmp_path).load()
    assert calls and loaded is not None and loaded.images == 200


def test_readers_beside_a_writer(tmp_path: Path) -> None:
    """No reader ever sees half a checkpoint, or none, or an older one than before."""
    save(tmp_path, 1, 100)
    done, seen, failed = threading.Event(), [], []

    def read() -> None:
        try:
            while True:
                last = done.is_set()
                loaded = Checkpoints(tmp_path).load()
                assert loaded is not None and float(loaded.ema["weight"][0, 0]) == loaded.images
                seen.append(loaded.images)
                if last:
                    return
        except BaseException as error:
            failed.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = threading.Thread(target=read)
        reader.start()
        for images in range(200, 4200, 100):
            save(tmp_path, 1, images)
        done.set()
        reader.join()
    assert not failed and seen == sorted(seen) and seen[-1] == 4100
