"""A model on disk: weights in safetensors, and beside them a JSON file that says what they belong
to.

``save_model("get.safetensors")`` writes ``get.json`` beside. A folder for the Hub holds the same
two under the Hub's names, ``model.safetensors`` and ``config.json``, and both kinds are read here.
Weights keep the dtype they have: a model saved in half precision comes back in half precision.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deqgen.atomic import replacing, write_text
from deqgen.models.choices import decode
from deqgen.models.errors import ModelFileError
from deqgen.models.protocol import GenerativeModel
from deqgen.models.registry import create_model

_FORMAT = 1
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"

M = TypeVar("M", bound=GenerativeModel)


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
        TypeError: if there is no :class:`GenerativeModel` in ``model``, or its config holds what
            JSON cannot (:class:`UnsavableError`); nothing has been written then.
        ValueError: if the path does not end in ``.safetensors``.
    """
    path = _checked_path(path)
    write_model(model, path, path.with_suffix(".json"))
    return path


def write_model(model: nn.Module, weights: Path, header: Path) -> None:
    """Write the two files of a model; see :func:`save_model`."""
    bare = _unwrap(model)
    content = {
        "format": _FORMAT,
        "architecture": bare.architecture,
        "config": bare.saved_config().to_dict(),
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_weights(bare.state_dict(), weights)
    write_text(header, json.dumps(content, indent=2) + "\n")


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict to a safetensors file, whole or not at all.

    Tied weights are written once under each name: the format knows no sharing.

    Raises:
        OSError: the disk is full or not writable.
    """
    held: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in held else tensor
        held.add(memory)
    try:
        with replacing(path) as partial:
            save_file(plain, partial, metadata={"format": "pt"})
    except SafetensorError as error:
        raise _disk_error(error, path) from error


def load_model(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", **overrides: Any
) -> GenerativeModel:
    """Rebuild a saved model, in evaluation mode.

    Args:
        path: the ``.safetensors`` file that :func:`save_model` wrote, its ``.json`` beside it; or
            a folder that ``save_pretrained`` wrote.
        device: where the weights go.
        overrides: fields of the config in place of the saved ones, for example ``max_steps=12`` or
            ``solver=Anderson(memory=8)``. The weights must still fit.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ModelFileError: (a ValueError) if a file is damaged, or weights and config do not fit; the
            message names what the config asks for and what the file holds.
        TypeError: an override that the model does not have, or of the wrong type.
        ValueError: an override out of its range.
    """
    return load_as(GenerativeModel, path, device, overrides)


def load_as(
    wanted: type[M],
    path: str | os.PathLike[str],
    device: torch.device | str,
    overrides: dict[str, Any],
) -> M:
    """:func:`load_model` for a model that must be a ``wanted``; another one is refused."""
    path = Path(path)
    path = path / HUB_WEIGHTS if path.is_dir() else _checked_path(path)
    header = _header_of(path)
    model = _build(header, overrides)
    if not isinstance(model, wanted):
        raise ModelFileError(
            f"{header} describes a {model.architecture}, and {wanted.__name__} was asked for; "
            f"{type(model).__name__}.from_pretrained or GenerativeModel.from_pretrained loads it."
        )
    try:
        weights = load_file(path, device=str(device))
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged or no safetensors file: {error}") from error
    changed = f" with {', '.join(overrides)} overridden" if overrides else ""
    check_fit(f"{path} does not fit its config{changed}", model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)
    _fill_buffers(model, torch.device(device))
    return model.eval()


def check_fit(what: str, wanted: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    """Compare the names and shapes of a model's tensors with those of a file.

    Args:
        what: how the message begins.
        wanted: the tensors of the model, on the meta device for instance.
        got: the tensors of the file.

    Raises:
        ModelFileError: naming both sides.
    """
    missing = sorted(wanted.keys() - got.keys())
    extra = sorted(got.keys() - wanted.keys())
    if missing or extra:
        raise ModelFileError(f"{what}: missing {few(missing)}; unexpected {few(extra)}.")
    for name, tensor in wanted.items():
        if tensor.shape != got[name].shape:
            raise ModelFileError(
                f"{what}: {name} should have shape {tuple(tensor.shape)}, "
                f"the file holds {tuple(got[name].shape)}."
            )


def few(names: list[str]) -> str:
    """The first four names and how many there are besides."""
    shown = ", ".join(names[:4]) or "nothing"
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _build(header: Path, overrides: dict[str, Any]) -> GenerativeModel:
    """The model of a header, on the meta device; wrong overrides are not the file's fault."""
    content = _read_header(header)
    architecture = content["architecture"]
    with torch.device("meta"):
        try:
            config = {name: decode(value) for name, value in content["config"].items()}
            model = create_model(architecture, **config)
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"{header}: {error}") from error
        return create_model(architecture, **{**config, **overrides}) if overrides else model


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


def _header_of(weights: Path) -> Path:
    """The config beside the weights: under their own name, else under the Hub's.

    A ``model.json`` goes before ``config.json``: ``save_pretrained`` removes it, so where there are
    both, :func:`save_model` has written since.
    """
    own = weights.with_suffix(".json")
    hub = weights.with_name(HUB_CONFIG)
    if weights.name == HUB_WEIGHTS and not own.is_file() and hub.is_file():
        return hub
    return own


def _disk_error(error: SafetensorError, path: Path) -> OSError:
    """The error of the system that safetensors has put into words."""
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(f"{path} could not be written: {error}")
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path))


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
