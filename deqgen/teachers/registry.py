"""Teachers by name or file: one safetensors file holds the weights and how to use them.

The file's header carries one metadata entry, ``deqgen_teacher``, a JSON object::

    {"version": 1, "name": ..., "architecture": "edm-unet", "config": {...},
     "image_shape": [C, H, W], "num_classes": ..., "class_names": [...],
     "sampler": {...}, "guidance": {...}, "card": {...}}

Parameters are stored in half precision and used in float32; buffers are stored as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deqgen.atomic import replacing
from deqgen.teachers.download import is_url
from deqgen.teachers.edm import EDMDenoiser
from deqgen.teachers.guidance import Guidance
from deqgen.teachers.names import build, unknown
from deqgen.teachers.preconditioning import build_preconditioned
from deqgen.teachers.sampler import Sampler
from deqgen.teachers.teacher import Teacher, check_options
from deqgen.teachers.unet import UNet, UNetConfig

METADATA_KEY = "deqgen_teacher"
VERSION = 1


class TeacherError(ValueError):
    """A teacher's file is missing, damaged, or not a teacher's file."""


def _build_edm_unet(config: Mapping[str, Any]) -> EDMDenoiser:
    options = dict(config)
    sigma_data = float(options.pop("sigma_data", 0.5))
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    network = build("architecture", {"edm-unet": UNetConfig}, "edm-unet", options)
    return EDMDenoiser(UNet(network), sigma_data=sigma_data)


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "edm": build_preconditioned,
    "edm-unet": _build_edm_unet,
}
TEACHERS: dict[str, Callable[..., Teacher]] = {}


def register_architecture(name: str, builder: Callable[[Mapping[str, Any]], nn.Module]) -> None:
    """Let teacher files name an architecture of your own.

    Args:
        name: goes into the file.
        builder: turns the file's ``config`` into a denoiser with randomly initialised weights.
    """
    ARCHITECTURES[name] = builder


def register_teacher(name: str, loader: Callable[..., Teacher]) -> None:
    """Make ``load_teacher(name, **options)`` call ``loader(**options)``."""
    TEACHERS[name] = loader


def available_teachers() -> list[str]:
    """Names that :func:`load_teacher` knows."""
    return sorted(TEACHERS)


def load_teacher(name_or_path: str | Path, **options: Any) -> Teacher:
    """Load a teacher, wherever it comes from; no code in any file is run.

    Args:
        name_or_path: one of these:

            - a name: ``"cifar10-small"`` is embedded; others, such as ``"edm-cifar10-uncond-vp"``,
              are downloaded once (:func:`available_teachers` lists them). A string that is a name
              means the teacher, whatever lies in the current folder; a ``Path`` means the file;
            - a ``.safetensors`` file that :func:`save_teacher` wrote. Any other ``Path``, or string
              with a folder in it, is taken for one;
            - a ``.pkl`` checkpoint of EDM, or its address (:func:`load_edm`);
            - ``"diffusers:ID"`` for a name on the Hugging Face Hub, or a folder with a pipeline of
              diffusers (:func:`load_diffusers`).
        options: arguments of :class:`Teacher` that replace the file's (``sampler``, ``guidance``,
            ``device``, ``precision``, ``compile``, ...).

    Raises:
        ValueError: no teacher of this name, or an address of something else than a ``.pkl``.
        TeacherError: the file is missing, truncated, or something else.
        TypeError: an option that a teacher does not have.
    """
    if isinstance(name_or_path, str) and name_or_path in TEACHERS:
        return TEACHERS[name_or_path](**options)
    path = Path(name_or_path)
    if is_url(name_or_path) and path.suffix != ".pkl":
        raise ValueError(
            f"of addresses, only those of EDM's checkpoints, which end in .pkl, can be loaded; got "
            f"{name_or_path!r}. Download other files and give their path."
        )
    if str(name_or_path).startswith("diffusers:") or path.is_dir():
        from deqgen.teachers.diffusers import load_diffusers  # which imports this file

        return load_diffusers(str(name_or_path).removeprefix("diffusers:"), **options)
    if path.suffix == ".pkl":
        from deqgen.teachers.edm_file import load_edm  # likewise

        return load_edm(name_or_path, **options)
    if isinstance(name_or_path, str) and _like_the_hub(name_or_path) and not path.is_file():
        raise TeacherError(
            f"there is no teacher file at {name_or_path}; a pipeline on the Hugging Face Hub is "
            f"'diffusers:{name_or_path}'"
        )
    if isinstance(name_or_path, Path) or path.suffix == ".safetensors" or len(path.parts) > 1:
        return _load_file(path, **options)
    raise ValueError(unknown("teacher", name_or_path, TEACHERS))


def _like_the_hub(name: str) -> bool:
    """Whether this may be ``owner/name`` on the Hub, and no file of ours by its ending."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not name.endswith(".safetensors")


def _load_cifar10_small(**options: Any) -> Teacher:
    asset = resources.files("deqgen") / "assets" / "cifar10_teacher.safetensors"
    with resources.as_file(asset) as path:
        return _load_file(path, **options)


register_teacher("cifar10-small", _load_cifar10_small)


def save_teacher(
    denoiser: nn.Module,
    path: str | Path,
    metadata: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a denoiser and its sampling defaults to one safetensors file.

    Args:
        denoiser: the module; a U-Net under ``EDMDenoiser`` describes itself, and so does
            one that has a method ``teacher_header`` of no arguments, which returns the entries.
        path: file to write; its folder is made. Written beside and renamed, so never half there.
        metadata: entries of the header (see the module's text). ``name`` is required;
            ``architecture``, ``config``, ``image_shape`` and ``num_classes`` too unless the
            denoiser describes itself. ``sampler`` and ``guidance`` may be objects. ``card`` is
            free: data, images seen, quality.
        dtype: of the stored floating-point parameters.

    Raises:
        ValueError: an entry is missing, or a weight is not finite in ``dtype``.
    """
    header = {"version": VERSION, **_describe(denoiser), **metadata}
    for key in ("sampler", "guidance"):
        if isinstance(header.get(key), Sampler | Guidance):
            header[key] = header[key].describe()
    missing = {"name", "architecture", "config", "image_shape", "num_classes"} - header.keys()
    if missing:
        raise ValueError(f"the metadata of a teacher also needs {', '.join(sorted(missing))}")
    # Tables of noise levels or frequencies: a rounded one is another schedule or embedding.
    buffers = {name for name, _ in denoiser.named_buffers(remove_duplicate=False)}
    tensors = {
        name: _stored(name, t, t.dtype if name in buffers else dtype)
        for name, t in denoiser.state_dict().items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={METADATA_KEY: json.dumps(header)})


def _describe(denoiser: nn.Module) -> dict[str, Any]:
    """Header entries of a denoiser that describes itself; empty for any other."""
    header = getattr(denoiser, "teacher_header", None)
    if callable(header):
        return dict(header())
    if not isinstance(denoiser, EDMDenoiser) or not isinstance(denoiser.network, UNet):
        return {}
    config = denoiser.network.config
    return {
        "architecture": "edm-unet",
        "config": {**asdict(config), "sigma_data": denoiser.sigma_data},
        "image_shape": [config.channels, config.image_size, config.image_size],
        "num_classes": config.num_classes,
    }


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.contiguous()
    stored = tensor.to(dtype).contiguous()
    if not stored.isfinite().all():
        raise ValueError(f"weight {name} is not finite in {dtype}")
    return stored


def _load_file(path: Path, **options: Any) -> Teacher:
    check_options(options)
    if not path.is_file():
        raise TeacherError(f"there is no teacher file at {path}")
    header, tensors = _read(path)
    try:
        denoiser, defaults = _rebuild(header, tensors)
    except KeyError as error:
        raise TeacherError(f"the teacher file {path} does not name its {error.args[0]}") from None
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]  # torch lists every key on its own line
        raise TeacherError(f"the teacher file {path} cannot be used: {reason}") from error
    return Teacher(denoiser, **{**defaults, **options})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"the teacher file {path} is truncated or damaged: {error}") from None
    try:
        header = json.loads(text or "")
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise TeacherError(f"{path} is a safetensors file, but not one that save_teacher wrote")
    return header, tensors


def _rebuild(
    header: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the denoiser with its weights in float32, and the file's arguments of Teacher."""
    if header["version"] != VERSION:
        raise ValueError(f"it has version {header['version']}; this release reads {VERSION}")
    architecture = header["architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(unknown("architecture", architecture, ARCHITECTURES))
    denoiser = ARCHITECTURES[architecture](header["config"])
    floats = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
    denoiser.load_state_dict(floats)
    guidance = header.get("guidance")
    return denoiser, {
        "image_shape": header["image_shape"],
        "num_classes": header["num_classes"],
        "sampler": Sampler.from_dict(header.get("sampler") or {}),
        "guidance": None if guidance is None else Guidance(**guidance),
        "name": header["name"],
        "class_names": header.get("class_names", ()),
    }
