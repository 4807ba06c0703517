"""A folder that belongs to one configuration, so that results are never mixed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from deqgen.atomic import write_text
from deqgen.data.held import held
from deqgen.data.manifest import PairError, differences, first_difference

CONFIG = "config.json"
SECONDS = "seconds.json"
FINISHED = "finished.json"
_MOST_SAID = 200  # characters of one difference
_LONGEST = 255  # bytes of a name on the usual file systems
_NUMBER = re.compile(r"(\d{5,})(-.*)?")


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


def begin_run(outdir: str | Path, label: str, config: Mapping[str, Any]) -> Path:
    """Make ``OUTDIR/00000-LABEL`` with the next free number and ``config.json`` in it.

    Two processes that call this at the same time get two numbers.

    Args:
        outdir: created if need be.
        label: characters other than letters, digits and ``._-`` become ``-``.
        config: JSON data.

    Raises:
        RunFolderError: ``outdir`` is a file, or not to be written to; the name is too long.
        OSError: the disk is full. No folder is left in any case.
    """
    outdir = next_run(outdir, label).parent  # which refuses what can be told beforehand
    try:
        with naming(outdir):
            outdir.mkdir(parents=True, exist_ok=True)
            return _filled(_claim_number(outdir), label, config)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise RunFolderError(f"no run folder can be made in {outdir}: {error.strerror}") from None


def _filled(claim: Path, label: str, config: Mapping[str, Any]) -> Path:
    """Write the configuration and give the folder its name, or remove it."""
    try:
        write_json(claim / CONFIG, config)
        return claim.rename(claim.with_name(f"{claim.name}-{_cleaned(label)}"))
    except BaseException:
        shutil.rmtree(claim, ignore_errors=True)
        raise


def next_run(outdir: str | Path, label: str) -> Path:
    """The folder that :func:`begin_run` would make now.

    Raises:
        RunFolderError: ``outdir`` is a file, or the name is too long for a disk.
    """
    outdir = Path(outdir)
    if outdir.exists() and not outdir.is_dir():
        raise RunFolderError(f"{outdir} is a file; runs need a folder")
    name = f"{_next_number(outdir)}-{_cleaned(label)}"
    if (size := len(os.fsencode(name))) > _LONGEST:
        raise RunFolderError(
            f"the name of the run's folder would have {size} bytes, and a disk takes {_LONGEST}; "
            f"shorten what follows the number: {name[:40]}..."
        )
    return outdir / name


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Let a disk that is full be named by this folder in the ``with`` block, if by nothing else.

    What a file says that is being written to has no name in it.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _cleaned(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-")


def _next_number(outdir: str | Path) -> str:
    return f"{1 + max((number for number, _ in numbered(outdir)), default=-1):05d}"


def _claim_number(outdir: Path) -> Path:
    """Make the folder ``OUTDIR/NUMBER`` of a number that no other folder there has."""
    while True:
        claim = outdir / _next_number(outdir)
        try:
            claim.mkdir()
        except FileExistsError:  # made since we looked
            continue
        if sum(f"{number:05d}" == claim.name for number, _ in numbered(outdir)) == 1:
            return claim
        claim.rmdir()  # another process had it, and has given it its name since we looked


def numbered(outdir: str | Path) -> list[tuple[int, Path]]:
    """The folders in ``outdir`` whose names begin with a number of five digits, in order."""
    outdir = Path(outdir)
    if not outdir.is_dir():
        return []
    matches = ((_NUMBER.fullmatch(path.name), path) for path in outdir.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def unfinished_run(
    outdir: str | Path, config: Mapping[str, Any], *, free: Collection[str] = ()
) -> Path | None:
    """The newest numbered folder of a run with this configuration that has not ended.

    Args:
        outdir: where runs are; need not exist.
        config: JSON data.
        free: settings that may differ; ``"run"`` stands for ``run.trackers`` and the like too.
    """
    for _, folder in reversed(numbered(outdir)):
        named = "-" in folder.name  # else it is being made at this moment
        if named and (folder / CONFIG).is_file() and not (folder / FINISHED).exists():
            try:
                found = read_config(folder)
            except RunFolderError:
                continue
            if not _unequal(found, config, free):
                return folder
    return None


def check_run(folder: str | Path, config: Mapping[str, Any], *, free: Collection[str] = ()) -> None:
    """Check that a run may go on with this configuration.

    Args:
        folder: of the run.
        config: JSON data.
        free: settings that may differ, as for :func:`unfinished_run`.

    Raises:
        RunFolderError: it is no run's folder, or that of another configuration; all differing
            settings are named.
    """
    if not (Path(folder) / CONFIG).is_file():
        raise RunFolderError(f"{folder} is not the folder of a run: there is no {CONFIG} in it")
    if unequal := _unequal(read_config(folder), config, free):
        raise RunFolderError(
            f"{folder} is the run of another configuration: {'; '.join(unequal)}. Give it the "
            "settings it began with, or begin a new run with --resume never"
        )


@contextmanager
def training_in(folder: str | Path) -> Iterator[None]:
    """Keep other processes from training in this folder during the ``with`` block.

    Raises:
        RunFolderError: one does already.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held(Path(folder), alone=True))
        except PairError:
            raise RunFolderError(
                f"another process is training in {folder}; wait for it, or begin another run with "
                "--resume never"
            ) from None
        yield


def _unequal(found: Any, config: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """How the configuration differs from the one found, where it may not."""
    wanted = json.loads(json.dumps(config))
    return [
        said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]}..."
        for path, said in differences(found, wanted)
        if not any(path == name or path.startswith(f"{name}.") for name in free)
    ]


def _compare(path: Path, wanted: Mapping[str, Any]) -> None:
    difference = first_difference(_read(path), wanted)
    if difference:
        raise RunFolderError(
            f"{path.parent} is the folder of another configuration: {difference}; choose another "
            "folder with --output-dir, or delete it"
        )


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a run.

    Raises:
        RunFolderError: it is damaged, or something else.
    """
    return _read(Path(folder) / CONFIG)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RunFolderError(f"{path} is damaged; choose another folder or delete it")
    return found


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
