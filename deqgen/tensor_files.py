"""Files of tensors, read without running anything in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def read_tensor_file(
    path: Path,
    error: type[ValueError],
    *,
    mapped: bool = False,
    allowed: Sequence[type] = (),
) -> Any:
    """What a file holds, on the CPU: ``.safetensors``, or anything that ``torch.save`` wrote.

    The latter is read with ``weights_only=True``: nothing but tensors and plain containers.

    Args:
        path: of the file.
        error: what to raise about its content.
        mapped: leave tensors of torch.save in the file until they are used; who keeps them, copies
            them. Of a file with more than is wanted, only that is read.
        allowed: types that torch.save may have written besides tensors and plain containers.

    Raises:
        ValueError: (an ``error``) the file is damaged, or asks for anything else, none of which is
            run.
        OSError: it is missing or may not be read.
    """
    path.open("rb").close()  # what the system says against it is no fault of the content
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as reason:
            raise error(f"{path} is damaged or no safetensors file: {reason}") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # on pickles of other programs torch warns, then fails
            mmap = mapped and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as reason:  # torch raises whatever its reader stumbles over
        raise error(_refusal(path, reason, allowed)) from None


def _refusal(path: Path, reason: Exception, allowed: Sequence[type]) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", str(reason))
    if isinstance(reason, pickle.UnpicklingError) and wanted:
        *others, last = "tensors", "plain containers", *map(_named, allowed)
        return (
            f"{path} is refused: loading it would use {wanted[1]}, and nothing but "
            f"{', '.join(others)} and {last} is let in; no code of it was run."
        )
    return f"{path} is damaged, or no file of tensors that torch.save wrote."


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
