"""A folder that belongs to one configuration, so that results are never mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from deqgen.atomic import write_text
from deqgen.data.manifest import first_difference

CONFIG = "config.json"
SECONDS = "seconds.json"


class RunFolderError(ValueError):
    """The folder is of another run, or holds something else."""


def claim_folder(directory: str | Path, config: Mapping[str, Any]) -> Path:
    """Make ``directory`` the folder of the run that ``config`` describes, new or to be continued.

    Args:
        directory: created if need be; ``config.json`` in it says whose it is.
        config: JSON data.

    Returns:
        The directory.

    Raises:
        RunFolderError: it holds a run with another configuration (the first differing setting is
            named), a damaged ``config.json``, or files without one.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise RunFolderError(f"{directory} is a file; the output needs a folder")
    path = directory / CONFIG
    wanted = json.loads(json.dumps(config))  # tuples become lists, as they will be when read back
    if path.is_file():
        _compare(path, wanted)
        return directory
    if directory.is_dir() and any(not file.name.endswith(".tmp") for file in directory.iterdir()):
        raise RunFolderError(
            f"{directory} holds files but no {CONFIG}, so it is not the folder of a run; "
            "choose another one"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
    return directory


def _compare(path: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunFolderError(f"{path} is damaged; choose another folder or delete it") from None
    difference = first_difference(found, wanted)
    if difference:
        raise RunFolderError(
            f"{path.parent} is the folder of another configuration: {difference}; choose another "
            "folder with --output-dir, or delete it"
        )


def write_json(path: str | Path, data: Any) -> None:
    """Write ``data`` so that the file is either the old one or the new one, never half."""
    write_text(Path(path), json.dumps(data, indent=2) + "\n")


class Stopwatch:
    """Seconds spent in each stage of a run, kept in its folder over interruptions."""

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / SECONDS
        self.seconds: dict[str, float] = {}
        if self.path.is_file():
            try:
                self.seconds = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                raise RunFolderError(f"{self.path} is damaged; delete it") from None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the ``with`` block to stage ``name``, however the block ends."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
            write_json(self.path, self.seconds)
