"""Checkpoints of a training run: numbered folders, each of which is whole or not there.

``DIRECTORY/checkpoints/000000012800/`` holds what a run needs to go on after 12,800 images:

- ``state.pt``: whatever the loop put in: optimizer, numbers, texts;
- ``model.safetensors``: the weights in training;
- ``ema.safetensors``: the averaged weights, with ``ema.json`` a file for ``load_model``;
- ``manifest.json``: size and SHA-256 of each of them, and its own; written last.

``checkpoints/latest`` links to the last one written, for people; nothing here reads it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deqgen.atomic import discard, new_folder, point, tidy_folder
from deqgen.models import GenerativeModel, UnsavableError
from deqgen.models.files import write_model, write_weights
from deqgen.training.checkpoint_manifest import verify, write_manifest
from deqgen.training.state_file import CheckpointError, load_checkpoint, save_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Checkpoints",
    "Loaded",
    "load_checkpoint",
    "save_checkpoint",
]

FOLDER, LATEST = "checkpoints", "latest"
STATE, MODEL, EMA = "state.pt", "model.safetensors", "ema.safetensors"

T = TypeVar("T")


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, and an older one was taken."""


@dataclass
class Loaded:
    """A checkpoint that was read; all tensors are on the CPU.

    Attributes:
        path: its folder.
        images: images seen when it was written.
        state: what the loop put in.
        model: weights in training, by name.
        ema: averaged weights, by name.
    """

    path: Path
    images: int
    state: dict[str, Any]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of the run in ``directory``: one process writes, any number may read.

    Whatever kills the writer at whatever moment, the newest whole checkpoint stays and is found.

    Args:
        directory: the training directory; ``checkpoints`` in it is made by the first save.
        keep: how many whole ones stay, at least 1.

    Raises:
        ValueError: ``keep`` is below 1.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}: a run needs a checkpoint")
        self.directory = Path(directory) / FOLDER
        self.keep = keep

    def save(
        self,
        images: int,
        state: Mapping[str, Any],
        model: nn.Module | Mapping[str, Tensor],
        ema: nn.Module,
    ) -> Path:
        """Write a checkpoint, then delete those that are older than the ``keep`` newest whole ones.

        Args:
            images: images seen; the folder's name.
            state: tensors, numbers, strings, lists and dicts.
            model: the bare model, or its weights by name; tied ones are written under each name.
            ema: the average; with a config of its own if it is a :class:`GenerativeModel`.

        Returns:
            The new folder.

        Raises:
            FileExistsError: a whole one is there for this count: two runs write to one folder.
            OSError: the disk is full or not writable; the older checkpoints are untouched.
            ValueError: ``images`` is negative.
        """
        if images < 0:
            raise ValueError(f"images must not be negative, got {images}")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.tidy()
        path = self.directory / f"{images:012d}"
        if path.exists() and not self._make_way(path):
            raise FileExistsError(f"{path} is there already; does another run write to it?")
        with new_folder(path) as partial:
            save_checkpoint(partial / STATE, state)
            weights = model.state_dict() if isinstance(model, nn.Module) else model
            write_weights(weights, partial / MODEL)
            _write_ema(ema, partial / EMA)
            write_manifest(partial, images)
        point(self.directory / LATEST, path.name)
        self._delete_older_than(images)
        return path

    def tidy(self) -> None:
        """Remove what a killed writer left; for the one process that writes."""
        tidy_folder(self.directory)

    def load(self) -> Loaded | None:
        """Read the newest checkpoint whose checksums are right; None if there is no checkpoint.

        Damaged ones that are newer are named in a :class:`CheckpointWarning`.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
            PermissionError: the newest may be whole, but not read.
        """
        return self._newest(_read)

    def newest(self) -> Path | None:
        """The folder that :meth:`load` would read, without reading more than its checksums.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
            PermissionError: the newest may be whole, but not read.
        """
        return self._newest(_checked)

    def _newest(self, read: Callable[[Path], T]) -> T | None:
        """What ``read`` makes of the newest folder that it accepts."""
        damaged: dict[Path, CheckpointError] = {}
        while paths := [path for path in self._folders() if path not in damaged]:
            path = paths[-1]
            try:
                found = read(path)
            except CheckpointError as error:
                if path.is_dir():  # else the writer has deleted it: look again
                    damaged[path] = error
                continue
            if damaged:
                warnings.warn(
                    f"{_listed(damaged)}; going back to {path.name}",
                    CheckpointWarning,
                    stacklevel=3,
                )
            return found
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.directory} is whole: {_listed(damaged)}; delete the "
                "folder to start over"
            )
        return None

    def _folders(self) -> list[Path]:
        """All checkpoints, whole or not, oldest first."""
        while self.directory.is_dir():
            paths = [p for p in self.directory.iterdir() if re.fullmatch(r"\d{12,}", p.name)]
            folders = [path for path in paths if path.is_dir()]
            # Else the writer has deleted the last of them, for a newer one: look again.
            if folders or all(path.exists() for path in paths):
                return sorted(folders, key=lambda path: int(path.name))
        return []

    def _make_way(self, path: Path) -> bool:
        """Remove what is under a name, unless it is a whole checkpoint."""
        if not path.is_dir() or _is_whole(path):
            return False
        discard(path)
        return True

    def _delete_older_than(self, images: int) -> None:
        """Leave ``keep`` whole ones up to this one, which is; a newer one is not looked at."""
        whole = 1
        for path in reversed([path for path in self._folders() if int(path.name) < images]):
            with suppress(OSError):  # what cannot be read or deleted now is in nobody's way
                if whole >= self.keep:
                    discard(path)
                elif _is_whole(path):
                    whole += 1


def _write_ema(ema: nn.Module, path: Path) -> None:
    if isinstance(ema, GenerativeModel):
        with suppress(UnsavableError):  # a config with a function in it: the weights alone
            return write_model(ema, path, path.with_suffix(".json"))
    return write_weights(ema.state_dict(), path)


def _checked(path: Path) -> Path:
    verify(path, required=(STATE, MODEL, EMA))
    return path


def _is_whole(path: Path) -> bool:
    try:
        _checked(path)
    except CheckpointError:
        return False
    return True


def _read(path: Path) -> Loaded:
    _checked(path)
    try:
        state = load_checkpoint(path / STATE)
        model, ema = load_file(path / MODEL), load_file(path / EMA)
    except PermissionError:
        raise
    except (SafetensorError, OSError) as error:  # made up; or deleted since it was checked
        raise CheckpointError(f"the weights in {path} cannot be read: {error}") from None
    return Loaded(path, int(path.name), state, model, ema)


def _listed(damaged: Mapping[Path, CheckpointError]) -> str:
    return "; ".join(str(error) for error in damaged.values())
