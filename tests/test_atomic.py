"""A file that is being replaced is the old one or the new one at every moment."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deqgen.atomic import (
    discard,
    file_sha256,
    new_folder,
    point,
    replacing,
    tidy,
    tidy_folder,
    write_text,
)


def test_the_block_sees_the_old_file_and_others_the_new_one_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_in_the_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_a_partial_file_that_tidy_removes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    (tmp_path / ".a.txt.notes").write_text("not ours")
    code = (
        "import os, pathlib, signal, sys\n"
        "from deqgen.atomic import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob("*.tmp"))) == 1
    tidy(path)
    assert sorted(os.listdir(tmp_path)) == [".a.txt.notes", "a.txt"]


def test_a_folder_that_cannot_be_synced_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_new_file_leaves_an_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path, new=True) as partial:
        partial.write_text("first")
    with pytest.raises(FileExistsError), replacing(path, new=True) as partial:
        partial.write_text("second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


def test_a_new_file_on_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with replacing(tmp_path / "a.txt", new=True) as partial:
        partial.write_text("first")
    assert (tmp_path / "a.txt").read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read(mask: int, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    before = os.umask(mask)
    try:
        with replacing(path) as partial:
            save_file({"a": torch.ones(1)}, partial)  # for its owner's eyes alone
        assert path.stat().st_mode & 0o777 == mode
        path.chmod(0o400)
        write_text(path, "new")
        assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with new_folder(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "deep" / "a.txt").read_text() == "a"
    assert os.listdir(tmp_path) == ["run"]


def test_a_folder_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "a.txt").write_text("old")
    with pytest.raises(FileExistsError, match="run"), new_folder(path) as partial:
        (partial / "a.txt").write_text("new")
    assert (path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["run"]
    with pytest.raises(NotADirectoryError), new_folder(path / "a.txt"):
        pass
    assert os.listdir(path) == ["a.txt"]


def test_an_error_in_the_block_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "run") as partial:
        (partial / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_is_gone_before_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    (path / "deep").mkdir(parents=True)
    seen, remove = [], shutil.rmtree

    def watched(folder: Path, ignore_errors: bool) -> None:
        seen.append(path.exists())
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watched)
    discard(path)
    assert seen == [False] and os.listdir(tmp_path) == []


def test_what_killed_processes_left_in_a_folder(tmp_path: Path) -> None:
    for name in (".run.0123abcd.tmp", ".other.ffffffff.tmp", ".mine.tmp", ".run.notes.tmp", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a")
    (tmp_path / ".latest.00000000.tmp").symlink_to("run")
    tidy(tmp_path / "run")
    assert not (tmp_path / ".run.0123abcd.tmp").exists() and len(os.listdir(tmp_path)) == 5
    tidy_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", ".run.notes.tmp", "run"]
    assert os.listdir(tmp_path / "run") == ["a.txt"]  # not deleted through the link


def test_a_name_with_brackets_is_tidied_too(tmp_path: Path) -> None:
    (tmp_path / ".a[1].txt.0123abcd.tmp").write_text("half")
    tidy(tmp_path / "a[1].txt")
    assert os.listdir(tmp_path) == []


def test_a_link_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "latest"
    for target in ("1", "2"):
        (tmp_path / target).mkdir()
        point(link, target)
        assert os.readlink(link) == target
    link.unlink()
    link.mkdir()  # a copy of the folder that followed the link
    point(link, "1")
    assert not link.is_symlink() and sorted(os.listdir(tmp_path)) == ["1", "2", "latest"]


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == sha256(content).hexdigest()
