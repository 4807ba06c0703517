"""One file that holds numbers, texts and tensors in dicts and lists, and can run no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deqgen.atomic import replacing, tidy
from deqgen.tensor_files import read_tensor_file


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another run."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts) to ``path``.

    When the process is killed or the disk is full, the checkpoint that was there before is still
    there and still whole.

    Raises:
        OSError: the disk is full or not writable; the old checkpoint is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path)
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # about its own positions in the file; the disk was the cause
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in the file can run code.

    Raises:
        CheckpointError: the file is missing, truncated, or not a checkpoint.
        PermissionError: it may not be read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    state = read_tensor_file(path, CheckpointError)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a checkpoint of this library")
    return state
