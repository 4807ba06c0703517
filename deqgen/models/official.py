"""Released checkpoints of locuslab/get, turned into ours.

They are dicts of ``model``, ``ema``, ``opt`` and ``args``, written by ``torch.save``: pickles,
which may hold anything. They are read with ``weights_only=True`` and one more type allowed, the
``argparse.Namespace`` of ``args``; a file that names anything else is refused before it is run.

The tensors have the names that ours have. Architecture and sizes are worked out from them and held
against ``args`` where there are any. Only the number of heads leaves no trace in the tensors: it
comes from the name of the model in ``args``, else from the width, which decides it in all published
sizes.

Letters: C channels, P patch side, L tokens, D width.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from deqgen.models.errors import ModelFileError
from deqgen.models.files import check_fit, few, save_model
from deqgen.models.protocol import GenerativeModel
from deqgen.models.registry import create_model, find_preset
from deqgen.tensor_files import read_tensor_file

Tensors: TypeAlias = dict[str, Tensor]

# Width to heads, in the published sizes of both architectures.
_HEADS = {256: 4, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16}
_WRAPPERS = ("module.", "_orig_mod.")  # data parallel, torch.compile
_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".json")


def convert_get(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: Literal["ema", "model"] = "ema",
    *,
    heads: int | None = None,
) -> Path:
    """Convert a checkpoint of locuslab/get, a GET or a ViT, conditional or not.

    Weights keep their values and dtype. The model evaluates as the published one does: plain
    iterations, as many as ``args`` say (six without), the iterate of lowest residual; another
    solver in ``args`` is not carried over.

    Args:
        checkpoint: the file, as downloaded.
        out: a ``.safetensors`` file, with the config in ``.json`` beside it, for ``load_model``; or
            a folder, with a model card, for ``from_pretrained``.
        weights: the average that the paper evaluates, ``"ema"``, or the trained ``"model"``.
        heads: attention heads; needed only for a width that the paper does not have where the
            checkpoint names no published model.

    Returns:
        The path of the weights.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ModelFileError: (a ValueError) the file is damaged, holds code or no checkpoint of this
            kind, or tensors that are missing, left over, of a wrong shape or not finite, or
            contradicts its own ``args``.
        ValueError: ``weights`` or ``out`` is none of the above.
    """
    if weights not in ("ema", "model"):
        raise ValueError(f"weights must be 'ema' or 'model', got {weights!r}.")
    path, target = Path(checkpoint), _checked_target(Path(out))
    content = _read(path)
    tensors = _chosen(path, content, weights)
    args = _arguments(path, content)
    architecture, config = _sizes(path, tensors)
    named = _check_arguments(path, architecture, config, args)
    config["heads"] = _choose_heads(path, config["width"], named, heads)
    if architecture == "GET" and _is_count(args.get("eval_f_max_iter")):
        config["max_steps"] = args["eval_f_max_iter"]
    model = _filled(path, architecture, config, tensors)
    return _write(model, target, f"{path.name}, `{weights}`")


def _checked_target(out: Path) -> Path:
    if out.suffix in _CHECKPOINT_SUFFIXES or (out.is_file() and out.suffix != ".safetensors"):
        raise ValueError(f"the output is a .safetensors file or a folder; got {str(out)!r}.")
    return out


def _write(model: GenerativeModel, target: Path, origin: str) -> Path:
    if target.suffix == ".safetensors":
        return save_model(model, target)
    notes = (
        f"Converted by `deqgen convert-get` from a checkpoint of "
        f"[locuslab/get](https://github.com/locuslab/get): {origin}."
    )
    model.save_pretrained(target, model_card_kwargs={"notes": notes})
    return target / "model.safetensors"


def _read(path: Path) -> Mapping[str, Any]:
    """Load the checkpoint without running anything in it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    # Mapped, so that the optimizer's state is never read.
    content = read_tensor_file(path, ModelFileError, mapped=True, allowed=[argparse.Namespace])
    if not isinstance(content, Mapping):
        raise ModelFileError(
            f"{path} holds a {type(content).__name__}; a checkpoint of locuslab/get is a dict of "
            "'model', 'ema', 'opt' and 'args'."
        )
    return content


def _chosen(path: Path, content: Mapping[str, Any], weights: str) -> Tensors:
    """The tensors under ``weights``, without what wrappers put before their names."""
    if weights not in content:
        other = {"ema": "model", "model": "ema"}[weights]
        hint = f" Choose the weights {other!r}." if other in content else ""
        raise ModelFileError(
            f"{path} has no {weights!r}; it holds {few([str(key) for key in content])}.{hint}"
        )
    found = content[weights]
    if not isinstance(found, Mapping) or not found:
        raise ModelFileError(f"{path}: {weights!r} should be a dict of tensors, and is not.")
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value)):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ModelFileError(
                f"{path}: {name} in {weights!r} should be a tensor of floating-point numbers, and "
                f"is {kind}."
            )
    tensors = dict(found)
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided


def _arguments(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    args = content.get("args") or {}
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, Mapping):
        raise ModelFileError(f"{path}: 'args' should be a Namespace, and is {args!r}.")
    return dict(args)


def _sizes(path: Path, tensors: Tensors) -> tuple[str, dict[str, Any]]:
    """Architecture and config fields that the shapes tell: all but the heads."""

    def shape(name: str, letters: str) -> torch.Size:
        if name not in tensors:
            raise ModelFileError(
                f"{path} holds no GET or ViT of locuslab/get: it has no {name}, but "
                f"{few(sorted(tensors))}."
            )
        got = tensors[name].shape
        if len(got) != len(letters) or 0 in got:
            raise ModelFileError(
                f"{path}: {name} should have a shape ({', '.join(letters)}), it has {tuple(got)}."
            )
        return got

    width, channels, patch, _ = shape("x_embedder.proj.weight", "DCPP")
    tokens = shape("pos_embed", "1LD")[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ModelFileError(f"{path}: {tokens} positions are no square of patches.")
    config: dict[str, Any] = {
        "image_size": side * patch,
        "channels": channels,
        "patch_size": patch,
        "num_classes": None,
        "width": width,
        "depth": _count(tensors, "blocks"),
        "mlp_ratio": _ratio(shape("blocks.0.mlp.fc1.weight", "HD")[0], width),
    }
    if "y_embedder.embedding_table.weight" in tensors:
        config["num_classes"] = shape("y_embedder.embedding_table.weight", "KD")[0]
    if not any(name.startswith(("deq_blocks.", "qkv_inj.")) for name in tensors):
        return "ViT", config
    hidden = shape("deq_blocks.0.mlp.fc1.weight", "HD")[0]
    config["deq_depth"] = _count(tensors, "deq_blocks")
    config["deq_mlp_ratio"] = _ratio(hidden, width)
    return "GET", config


def _count(tensors: Tensors, blocks: str) -> int:
    """Different blocks of a list; a gap in their numbers shows as missing names later."""
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in tensors)
    return len({match[1] for match in found if match})


def _ratio(hidden: int, width: int) -> float:
    """A ratio of which ``int(width * ratio)`` is ``hidden``, also where the quotient is inexact."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _check_arguments(
    path: Path, architecture: str, config: dict[str, Any], args: dict[str, Any]
) -> dict[str, Any]:
    """Hold the sizes against ``args``; return the fields of the published model named there."""
    preset = find_preset(str(args.get("model")))
    named = {} if preset is None else {**preset.values}
    said: dict[str, Any] = {**named}
    if preset is not None:
        said["architecture"] = preset.config.__name__.removesuffix("Config")
    if "input_size" in args:
        said["image_size"] = args["input_size"]
    if "cond" in args:
        said["num_classes"] = args.get("num_classes") if args["cond"] else None
    found = {**config, "architecture": architecture}
    for field, value in said.items():
        if field in found and found[field] != value:
            raise ModelFileError(
                f"{path} contradicts itself: its args (model {args.get('model')}) mean "
                f"{field}={value}, its weights have {field}={found[field]}."
            )
    return named


def _choose_heads(path: Path, width: int, named: dict[str, Any], given: int | None) -> int:
    known: int | None = named.get("heads", _HEADS.get(width))
    if given is not None and given != named.get("heads", given):
        raise ModelFileError(
            f"{path}: heads={given} was asked for, its args mean heads={named['heads']}."
        )
    chosen = known if given is None else given
    if chosen is None:
        raise ModelFileError(
            f"{path} does not tell the number of attention heads: no published model has the width "
            f"{width}. Say it with heads (--heads)."
        )
    return chosen


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _filled(
    path: Path, architecture: str, config: dict[str, Any], tensors: Tensors
) -> GenerativeModel:
    """The model with the checkpoint's tensors, all names, shapes and numbers checked."""
    try:
        with torch.device("meta"):
            model = create_model(architecture, **config)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: {error}") from error
    sizes = ", ".join(f"{name}={value}" for name, value in config.items())
    check_fit(f"{path} is no {architecture} with {sizes}", model.state_dict(), tensors)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelFileError(f"{path}: {name} holds numbers that are not finite.")
    model.load_state_dict(tensors, assign=True)
    return model
