"""Who writes to a folder: one process alone, or several that share it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deqgen.data.manifest import PairError


@contextmanager
def held(directory: Path, *, alone: bool) -> Iterator[None]:
    """Lock a folder while it is written to; the system frees the lock of a killed process.

    Where the system or the file system cannot lock folders, nothing is locked.

    Args:
        directory: an existing folder.
        alone: let nobody else in; else let others in that are not alone.

    Raises:
        PairError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PairError(
                f"another process is writing to {directory}: wait for it, choose another folder, "
                "or give every process its rank and their number"
            ) from None
        except OSError:  # some network file systems
            pass
        yield
    finally:
        os.close(handle)
