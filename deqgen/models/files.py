"""A model on disk: weights in safetensors, and beside them a JSON file that says what they belong
to.

Weights keep the dtype they have: a model saved in half precision comes back in half precision.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deqgen.atomic import replacing, write_text
from deqgen.models.errors import ModelFileError
from deqgen.models.protocol import GenerativeModel
from deqgen.models.registry import create_model

_FORMAT = 1


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights to ``path`` and the config to the same name with ``.json``.

    Each file appears whole or not at all; the config is written last. A compiled or data-parallel
    wrapper is looked through.

    Args:
        model: a :class:`GenerativeModel`.
        path: ends in ``.safetensors``; its folder is made if need be.

    Returns:
        The path of the weights.

    Raises:
        TypeError: if there is no :class:`GenerativeModel` in ``model``.
        ValueError: if the path does not end in ``.safetensors``.
    """
    path = _checked_path(path)
    bare = _unwrap(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in bare.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    header = {
        "format": _FORMAT,
        "architecture": bare.architecture,
        "config": bare.config.to_dict(),
    }
    write_text(path.with_suffix(".json"), json.dumps(header, indent=2) + "\n")
    return path


def load_model(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> GenerativeModel:
    """Rebuild a model that :func:`save_model` wrote, in evaluation mode.

    Args:
        path: the ``.safetensors`` file; the ``.json`` lies beside it.
        device: where the weights go.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ModelFileError: (a ValueError) if a file is damaged, or weights and config do not fit; the
            message names what the config asks for and what the file holds.
    """
    path = _checked_path(path)
    header = _read_header(path.with_suffix(".json"))
    try:
        with torch.device("meta"):
            model = create_model(header["architecture"], **header["config"])
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path.with_suffix('.json')}: {error}") from error
    try:
        weights = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged or no safetensors file: {error}") from error
    _check_fit(path, model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)
    _fill_buffers(model, torch.device(device))
    return model.eval()


def _fill_buffers(model: GenerativeModel, device: torch.device) -> None:
    """Give memory to the buffers that no file holds, and let the model write them."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device=device))
    model.write_fixed_buffers()


def _checked_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are kept in a .safetensors file; got {str(path)!r}.")
    return path


def _unwrap(model: nn.Module) -> GenerativeModel:
    inner: Any = model
    while not isinstance(inner, GenerativeModel):
        following = getattr(inner, "_orig_mod", None)  # torch.compile
        following = getattr(inner, "module", None) if following is None else following  # DDP, EMA
        if not isinstance(following, nn.Module):
            raise TypeError(f"save_model needs a GenerativeModel, got {type(model).__name__}.")
        inner = following
    return inner


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it says which model the weights belong to.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise ModelFileError(f"{path} has format {got!r}; this version reads format {_FORMAT}.")
    architecture, config = header.get("architecture"), header.get("config")
    if not isinstance(architecture, str) or not isinstance(config, dict):
        raise ModelFileError(f"{path} must hold 'architecture' (a name) and 'config' (an object).")
    return header


def _check_fit(path: Path, wanted: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    missing = sorted(wanted.keys() - got.keys())
    extra = sorted(got.keys() - wanted.keys())
    if missing or extra:
        raise ModelFileError(
            f"{path} does not fit its config: missing {_few(missing)}; unexpected {_few(extra)}."
        )
    for name, tensor in wanted.items():
        if tensor.shape != got[name].shape:
            raise ModelFileError(
                f"{path} does not fit its config: {name} should have shape {tuple(tensor.shape)}, "
                f"the file holds {tuple(got[name].shape)}."
            )


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:4]) or "nothing"
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
