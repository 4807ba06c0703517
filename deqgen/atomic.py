"""Files that are whole: a kill, a full disk or a power cut leaves the old one or the new one."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; at the end of the block it takes its place.

    The new content is flushed to the disk before the rename and the rename after it. If the block
    or the disk fails, ``path`` is what it was and nothing is left beside it; only a killed process
    leaves its partial file, for :func:`tidy`. Several processes may replace the same file.

    Args:
        path: the file to appear; its folder exists.
        new: leave a file alone that is there by then.

    Yields:
        Where to write; the block creates the file and closes it.

    Raises:
        OSError: the disk is full or not writable.
        FileExistsError: there is one already, and ``new`` was asked for.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        _flush(partial)
        if not (new and _link(partial, path)):
            partial.replace(path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by a UTF-8 file of this text; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def tidy(*paths: Path) -> None:
    """Remove the partial copies of these files that killed processes left."""
    for path in paths:
        for partial in path.parent.glob(f".{path.name}.*.tmp"):
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> bool:
    """Give a file a second name, which fails if that is taken; false on systems without links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _flush(path: Path) -> None:
    """Make a file, or the renames in a folder, durable; some systems cannot sync a folder."""
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
