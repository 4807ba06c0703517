"""EDM's checkpoints (arXiv 2206.00364), read without running anything in them.

A checkpoint is a pickle of a dict whose entry ``ema`` is the network, as nested records of modules.
EDM's own loader executes Python source out of the file. Here the records are read as plain data,
our network of the same name is built from the arguments that they hold, and their tensors are put
into it under their names.

Safety. No code of the file is imported, compiled or called (:mod:`deqgen.teachers.restricted`).
What is built is bounded by what the file holds: its arguments are short and plain, the network is
laid out without memory first, and it gets memory only once every name and every shape fits, and
only as much as the file's own bytes can fill (tensors in it may share them).

The weights that NVIDIA published are under CC BY-NC-SA 4.0: name the source, no commercial use,
share alike.

Letters: B samples, C channels, S image side, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqgen.teachers.download import fetch, is_url
from deqgen.teachers.names import unknown
from deqgen.teachers.preconditioner import Preconditioner
from deqgen.teachers.preconditioning import PRECONDITIONERS
from deqgen.teachers.recorded import Recorded, read_edm_pickle
from deqgen.teachers.registry import TeacherError, save_teacher
from deqgen.teachers.restricted import DamagedPickleError, UnsafePickleError, shown
from deqgen.teachers.sampler import Sampler
from deqgen.teachers.teacher import Teacher, check_options

# No argument of a network of EDM comes near these.
_LONGEST_LIST, _LONGEST_TEXT, _LARGEST_NUMBER = 64, 64, 2**20
_TENSORS_A_BLOCK = 10  # at least: two norms, two convolutions and an affine map, with biases
_GROWTH, _SLACK = 2, 2**20  # bytes of float32 for a byte of the file (of float16), and some more


def load_edm(path_or_url: str | Path, **teacher_options: Any) -> Teacher:
    """Load a checkpoint in EDM's format: NVIDIA's, or one that EDM's training wrote.

    Weights are used in float32, whatever type the file has them in; those in float64 are rounded.
    (A network recorded with ``use_fp16`` runs in half precision on a GPU, as the original.) The
    sampler is EDM's deterministic one for the resolution: Heun, with 18 steps up to 32x32 and 40
    above. (The quality published for ImageNet-64 is that of 256 steps with churn, see
    :class:`Churn`: a path that the first noise does not decide, and so nothing that a one-step
    student could learn.)

    Args:
        path_or_url: a file, or an address to download from once; see
            :func:`~deqgen.teachers.download.fetch`.
        teacher_options: arguments of :class:`Teacher` that replace the file's (``sampler``,
            ``guidance``, ``device``, ``precision``, ``name``, ...).

    Returns:
        A teacher with the images ``(C, S, S)`` and the K classes of the network.

    Raises:
        UnsafePickleError: (a ValueError) the file asks for anything but plain data, such as a
            function; the message names it, and nothing in the file was run.
        TeacherError: (a ValueError) there is no such file, it is damaged, or holds no network of
            EDM, or tensors that are missing, left over, of a wrong shape or not finite, or a
            network of more weights than the file has bytes for.
        TypeError: an option that a teacher does not have.
        DownloadError: (an OSError) there is no such address, or no network.
    """
    check_options(teacher_options)
    path = fetch(str(path_or_url)) if is_url(path_or_url) else Path(path_or_url)
    denoiser = _denoiser(path)
    side = denoiser.img_resolution
    defaults: dict[str, Any] = {
        "image_shape": (denoiser.img_channels, side, side),
        "num_classes": denoiser.num_classes,
        "sampler": _sampler(denoiser),
        "name": path.stem,
    }
    return Teacher(denoiser, **{**defaults, **teacher_options})


def convert_edm(checkpoint: str | Path, out: str | Path) -> Teacher:
    """Turn a checkpoint in EDM's format into a file that :func:`load_teacher` reads.

    Weights keep their values, in float32; only those of a file in float64 are rounded.

    Args:
        checkpoint: a file or an address, as for :func:`load_edm`; or a published name, such as
            ``"edm-cifar10-uncond-vp"``, which is downloaded once.
        out: the ``.safetensors`` file to write.

    Returns:
        The teacher that was written.

    Raises:
        ValueError: ``out`` does not end in ``.safetensors``; and what :func:`load_edm` raises.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"a teacher is kept in a .safetensors file; got {str(out)!r}.")
    from deqgen.teachers.published import PUBLISHED, fetch_published  # which imports this file

    teacher = load_edm(fetch_published(str(checkpoint)) if checkpoint in PUBLISHED else checkpoint)
    assert isinstance(teacher.denoiser, Preconditioner)
    card = {"source": f"converted from {Path(checkpoint).name}, a checkpoint in EDM's format"}
    metadata = {"name": teacher.name, "sampler": teacher.sampler, "card": card}
    save_teacher(teacher.denoiser, out, metadata, dtype=torch.float32)
    return teacher


def _denoiser(path: Path) -> Preconditioner:
    """The network of a file, with its weights; errors name the file."""
    if not path.is_file():
        raise TeacherError(f"there is no EDM checkpoint at {path}")
    try:
        ema = _averaged(read_edm_pickle(path))
        tensors = dict(_tensors(ema))
        denoiser = _laid_out(ema, len(tensors))
        _check_fit(denoiser.state_dict(), tensors)
        _check_bytes(tensors, path.stat().st_size)
        # Copies: tensors of a file may lie in one storage.
        floats = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        denoiser.load_state_dict(floats, assign=True)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} is refused: {error}") from None
    except DamagedPickleError as error:
        raise TeacherError(f"{path} is no EDM checkpoint, or damaged: {error}") from None
    except TeacherError as error:
        raise TeacherError(f"{path} cannot be used: {error}") from None
    return denoiser


def _averaged(content: object) -> Recorded:
    """The network under ``ema``."""
    if not isinstance(content, dict) or "ema" not in content:
        holds = _few(content) if isinstance(content, dict) else None
        raise TeacherError(
            "an EDM checkpoint is a dict with an entry 'ema', this holds "
            f"{holds or f'a value of type {type(content).__name__}'}."
        )
    ema = content["ema"]
    if not isinstance(ema, Recorded):
        raise TeacherError(f"its 'ema' is of type {type(ema).__name__}, no network.")
    return ema


def _tensors(network: Recorded) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a recorded network, as its ``state_dict`` would list them."""
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            raise TeacherError(f"the module {shown(prefix)} is in it twice.")
        seen.add(id(module))
        yield from _own_tensors(prefix, module)
        for name, child in _entries(module, "_modules"):
            if not isinstance(child, Recorded):
                raise TeacherError(f"{shown(prefix + name)} should be a module, and is not.")
            waiting.append((f"{prefix}{name}.", child))


def _own_tensors(prefix: str, module: Recorded) -> Iterator[tuple[str, Tensor]]:
    unsaved = module.state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _entries(module, kind):
            if kind == "_buffers" and isinstance(unsaved, set) and name in unsaved:
                continue
            full = prefix + name
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise TeacherError(f"{shown(full)} should be a tensor of floating-point numbers.")
            yield full, tensor


def _entries(module: Recorded, kind: str) -> Iterator[tuple[str, object]]:
    """What is registered under ``_parameters``, ``_buffers`` or ``_modules``, and not None."""
    entries = module.state.get(kind)
    if not isinstance(entries, dict):
        raise TeacherError(f"the record of a module {shown(module.class_name)} has no {kind}.")
    return ((name, entry) for name, entry in entries.items() if entry is not None)


def _laid_out(network: Recorded, tensors: int) -> Preconditioner:
    """Our network with the recorded arguments, without memory for its weights."""
    name = network.class_name
    if name not in PRECONDITIONERS:
        raise TeacherError(unknown("preconditioner", shown(name), PRECONDITIONERS))
    kind = PRECONDITIONERS[name]
    args, kwargs = network.state.get("_init_args"), network.state.get("_init_kwargs")
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise TeacherError(f"its {name} does not record the arguments it was made with.")
    args = tuple(_plain("argument", value) for value in args[:_LONGEST_LIST])
    kwargs = {key: _plain(key, value) for key, value in kwargs.items()}
    _check_size(kwargs, tensors)
    try:
        with torch.device("meta"):
            denoiser = kind(*args, **kwargs)
        denoiser.default_sampler()  # its noise levels may be none
        return denoiser
    except Exception as error:  # wrong arguments may fail anywhere in a network
        said = shown(" ".join(str(error).split()))
        raise TeacherError(f"its {name} cannot be built with its arguments: {said}") from None


def _plain(name: str, value: object, *, nested: bool = False) -> object:
    """An argument that is a number, a short text, or a short list of those."""
    match value:
        case None | bool() | float():
            return value
        case int() if abs(value) <= _LARGEST_NUMBER:
            return value
        case str() if len(value) <= _LONGEST_TEXT:
            return value
        case list() | tuple() if len(value) <= _LONGEST_LIST and not nested:
            return [_plain(name, entry, nested=True) for entry in value]
    raise TeacherError(
        f"its argument {shown(name)} is of type {type(value).__name__}, in a size or kind "
        "that no network of EDM takes."
    )


def _check_size(kwargs: Mapping[str, Any], tensors: int) -> None:
    """Refuse a network of more blocks than the file can have tensors for, before laying it out."""
    blocks, levels = kwargs.get("num_blocks", 1), kwargs.get("channel_mult", [1])
    if not isinstance(blocks, int) or not isinstance(levels, list):
        raise TeacherError("its num_blocks is no number, or its channel_mult no list.")
    needed = 2 * blocks * len(levels) * _TENSORS_A_BLOCK  # encoder and decoder
    if needed > tensors:
        raise TeacherError(
            f"its arguments describe a network of {needed} tensors and more, it holds {tensors}."
        )


def _check_fit(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    """Compare the names and shapes of our network with those of the file."""
    missing, extra = wanted.keys() - got.keys(), got.keys() - wanted.keys()
    if missing or extra:
        raise TeacherError(
            f"its tensors do not fit its arguments: missing {_few(missing)}; "
            f"unexpected {_few(extra)}."
        )
    for name, tensor in wanted.items():
        if tensor.shape != got[name].shape:
            raise TeacherError(
                f"its {name} should have shape {tuple(tensor.shape)}, and has "
                f"{tuple(got[name].shape)}."
            )


def _check_bytes(tensors: Mapping[str, Tensor], held: int) -> None:
    """Refuse weights that would take more memory than the file has bytes for; then look at them."""
    needed = sum(4 * tensor.numel() for tensor in tensors.values())
    if needed > _GROWTH * held + _SLACK:
        raise TeacherError(
            f"its network takes {needed:,} bytes of weights, and the {held:,} bytes of the file "
            "cannot hold them: its tensors share memory."
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise TeacherError(f"its {shown(name)} holds numbers that are not finite.")


def _few(names: Iterable[str]) -> str:
    """The first three names and how many there are besides."""
    listed = sorted(names)
    rest = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (", ".join(shown(name) for name in listed[:3]) or "nothing") + rest


def _sampler(denoiser: Preconditioner) -> Sampler:
    """EDM's deterministic defaults for a resolution, between the network's own noise levels."""
    steps = 18 if denoiser.img_resolution <= 32 else 40
    return replace(denoiser.default_sampler(), steps=steps)
