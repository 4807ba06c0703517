"""Files and folders that are whole: a kill, a full disk or a power cut leaves the old or the new.

What is being written has a hidden name beside the final one, ``.NAME.0123abcd.tmp``; so has a
folder that is being deleted. Whoever looks for NAME sees all of it or nothing.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; at the end of the block it takes its place.

    The new content is flushed to the disk before the rename and the rename after it. If the block
    or the disk fails, ``path`` is what it was and nothing is left beside it; only a killed process
    leaves its partial file, for :func:`tidy`. Several processes may replace the same file. The
    file may be read by whom the umask lets read, whatever the block created it with.

    Args:
        path: the file to appear; its folder exists.
        new: leave a file alone that is there by then.

    Yields:
        Where to write; the block creates the file and closes it.

    Raises:
        OSError: the disk is full or not writable.
        FileExistsError: there is one already, and ``new`` was asked for.
    """
    partial = _beside(path)
    mode = _usual_mode(partial)
    try:
        yield partial
        partial.chmod(mode)  # safetensors would keep its files from everyone but the owner
        flush(partial)
        if not (new and _link(partial, path)):
            partial.replace(path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside ``path`` to fill; at the end of the block it appears as ``path``.

    As :func:`replacing` does with a file: all that is in it is flushed, then it is renamed.

    Args:
        path: the folder to appear; its parent exists.

    Raises:
        OSError: the disk is full or not writable; nothing is left.
        FileExistsError: something is there already; it is left alone.
    """
    partial = _beside(path)
    partial.mkdir()
    try:
        yield partial
        for inner in (*partial.rglob("*"), partial):
            flush(inner)
        _take_place(partial, path)
        flush(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder, which is gone under its name before the first file of it is.

    Raises:
        OSError: the disk is not writable; the folder is untouched.
    """
    hidden = _beside(folder)
    folder.rename(hidden)
    flush(folder.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def point(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target``, old or new at every moment.

    A convenience for people: on a system without such links there is none.
    """
    partial = _beside(link)
    with suppress(OSError, NotImplementedError):
        partial.symlink_to(target, target_is_directory=True)
        partial.replace(link)
    with suppress(OSError):
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a UTF-8 file of this text; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def tidy(*paths: Path) -> None:
    """Remove what killed processes left that were writing or deleting one of these."""
    for path in paths:
        _remove(path.parent, glob.escape(path.name))


def tidy_folder(folder: Path) -> None:
    """:func:`tidy` for whatever is, or was to be, in a folder that has one writer."""
    _remove(folder, "*")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Make a file, or the renames in a folder, durable; some systems cannot sync a folder.

    Raises:
        OSError: the file is not there, or the disk is full.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _remove(folder: Path, name: str) -> None:
    for partial in folder.glob(f".{name}.{'[0-9a-f]' * 8}.tmp"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The mode of a file that is simply opened here; asking for the umask would set it."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    path.unlink()
    return mode


def _take_place(partial: Path, path: Path) -> None:
    """Rename a folder to a name that is free, or an empty folder's."""
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "it is there already", str(path)) from None
        raise


def _link(partial: Path, path: Path) -> bool:
    """Give a file a second name, which fails if that is taken; false on systems without links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True
