"""One way to name a model that exists: embedded, a file, a folder, a run, or on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from deqgen.models.embedded import EMBEDDED, open_embedded, refuse_misspelt
from deqgen.models.errors import ModelFileError
from deqgen.models.files import HUB_WEIGHTS, load_model
from deqgen.models.protocol import GenerativeModel

_CHECKPOINTS, _EMA = "checkpoints", "ema.safetensors"

# "owner/name" or "name"; the Hub has no other names, so anything else was meant as a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_model(
    name_or_path: str | os.PathLike[str], *, device: torch.device | str = "cpu", **overrides: Any
) -> GenerativeModel:
    """Load a model from wherever it is, in evaluation mode.

    A string that names an embedded model (:func:`embedded_models`), such as ``"get-nano-cifar10"``,
    means that one, in float32, whatever lies in the current folder; a ``Path`` means the file. What
    exists here is read here, without the network:

    - a ``.safetensors`` file that ``save_model`` wrote, its ``.json`` beside it;
    - a folder that ``save_pretrained`` wrote;
    - the folder of a training run: the averaged weights (EMA) of its newest whole checkpoint (a
      :class:`~deqgen.training.checkpoint.CheckpointWarning` names the damaged ones after it);
    - one checkpoint of a run, such as ``RUN/checkpoints/000000012800``, or ``latest`` there: its
      averaged weights, which must be those of its manifest.

    Anything else is looked for on the Hugging Face Hub, if it may be a name there and is not almost
    that of an embedded model.

    Args:
        name_or_path: as above.
        device: where the weights go.
        overrides: fields of the config in place of the saved ones, as for :func:`load_model`.

    Raises:
        FileNotFoundError: there is no such path and it is no name, the folder holds no model, or
            half of one; the message says what was looked for.
        UnknownModelError: (a ValueError) a name that is almost that of an embedded model.
        ModelFileError: (a ValueError) a file is damaged, weights and config do not fit, or the Hub
            gives nothing of this name or cannot be reached.
        CheckpointError: the checkpoint, or all of the run, are damaged.
        TypeError: an override that the model does not have, or of the wrong type.
        ValueError: an override out of its range.
    """
    name, path = os.fspath(name_or_path), Path(name_or_path)
    if isinstance(name_or_path, str) and name in EMBEDDED:
        return open_embedded(name, device=device, **overrides)
    if path.is_dir():
        return _open_folder(path, device, overrides)
    if path.exists():
        if path.suffix != ".safetensors":
            raise ModelFileError(
                f"{path} is no .safetensors file; `deqgen convert-get` makes one of a released "
                "checkpoint of locuslab/get."
            )
        return load_model(path, device=device, **overrides)
    if path.suffix == ".safetensors" or not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(
            f"there is no model at {name!r}: a model is a .safetensors file, a folder that "
            "save_pretrained wrote, the folder of a training run, an embedded one such as "
            f"{next(iter(EMBEDDED))!r}, or a name on the Hub such as 'owner/name'."
        )
    refuse_misspelt(name)
    return GenerativeModel.from_pretrained(name, device=device, **overrides)


def _open_folder(
    folder: Path, device: torch.device | str, overrides: dict[str, Any]
) -> GenerativeModel:
    checkpoint = _checkpoint(folder)
    if checkpoint is not None:
        return load_model(checkpoint / _EMA, device=device, **overrides)
    if (folder / HUB_WEIGHTS).exists():
        return load_model(folder, device=device, **overrides)
    raise FileNotFoundError(
        f"{folder} holds no model: looked for {HUB_WEIGHTS} (save_pretrained writes it), {_EMA} (a "
        f"checkpoint) and {_CHECKPOINTS}/ with one (a training run).{_files_to_name(folder)}"
    )


def _checkpoint(folder: Path) -> Path | None:
    """The folder itself if it is a checkpoint, the newest whole one if it is a run, or None."""
    from deqgen.training.checkpoint import Checkpoints  # which itself imports the models
    from deqgen.training.checkpoint_manifest import MANIFEST, verify_files

    if (folder / _EMA).exists():
        if (folder / MANIFEST).exists():
            names = (_EMA, Path(_EMA).with_suffix(".json").name)
            verify_files(folder, [name for name in names if (folder / name).exists()])
        return folder
    folder = folder.resolve()  # "." has no name
    run = folder.parent if folder.name == _CHECKPOINTS else folder
    return Checkpoints(run).newest()


def _files_to_name(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" It holds {', '.join(names[:3])}{more}: name the file."
