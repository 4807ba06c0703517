"""``log.txt``: what a run says, on the screen and in its folder, where every line has its time."""

from __future__ import annotations

import warnings
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LOG = "log.txt"


class RunLog:
    """Say things; for a ``with`` block, which also catches warnings and writes errors down.

    Args:
        path: the file that lines are added to; None in all but one of several processes, which
            then say nothing and leave warnings alone.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._show: Any = None

    def say(self, text: str) -> None:
        """Print a line above the progress bar, and write it down."""
        if self.path is None:
            return
        tqdm.write(text)
        self.note(text)

    def note(self, text: str) -> None:
        """Write a line down without printing it."""
        if self.path is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{now} {line}\n" for line in text.splitlines()))

    def __enter__(self) -> RunLog:
        if self.path is not None:
            self._show = warnings.showwarning
            warnings.showwarning = self._note_warning
        return self

    def _note_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self.note(f"{category.__name__}: {message}")
        self._show(message, category, filename, lineno, file, line)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._show is not None:
            warnings.showwarning = self._show
        if error is not None:
            with suppress(OSError):  # on a full disk, which the error then tells of
                self.note(f"{type(error).__name__}: {error}")
