"""Teachers from pipelines of the library diffusers, on disk or on the Hugging Face Hub.

The library is imported when a pipeline is loaded, and not before.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from deqgen.teachers.discrete import DiscreteDenoiser
from deqgen.teachers.pipelines import AUTOENCODERS, INDEX, WEIGHTS, Pipeline, read_pipeline
from deqgen.teachers.registry import TeacherError
from deqgen.teachers.sampler import Sampler
from deqgen.teachers.schedules import Karras
from deqgen.teachers.teacher import Teacher, check_options


def load_diffusers(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    **teacher_options: Any,
) -> Teacher:
    """Load a teacher from a pipeline of diffusers with a discrete noise schedule.

    The network is a ``UNet2DModel`` or a DiT that predicts noise, velocity or the clean image. The
    scheduler is any with ``alphas_cumprod`` (DDPM, DDIM, PNDM, DPM-Solver, Euler, ...). Only its
    noise levels are used: deqgen's own sampler solves the ODE, clips nothing, and starts from noise
    times its highest sigma. Code that comes with a pipeline is never run, and weights are read from
    safetensors alone.

    A network on latents gives a teacher on latents, in the autoencoder's space times the scaling
    factor that ``describe()`` records. The autoencoder stays outside, and its weights are not read.

    A DiT has a label for "no class", so guidance works. A U-Net with N class embeddings is taken to
    have N classes, unless ``num_classes=N - 1`` says that its last one means "no class".

    Args:
        path_or_id: a folder that ``save_pretrained`` wrote, or a name on the Hub, of which the
            network and the configs are fetched. What exists here is read here.
        revision: branch, tag or commit on the Hub.
        local_files_only: use what has been fetched before, and no internet.
        teacher_options: arguments of :class:`Teacher`. The default sampler is EDM's 18 Heun steps,
            over that part of EDM's range 0.002..80 at which the network was trained.

    Returns:
        The teacher, in float32. Its ``denoiser`` is a
        :class:`~deqgen.teachers.discrete.DiscreteDenoiser`.

    Raises:
        ImportError: diffusers is not installed.
        TeacherError: (a ValueError) no such pipeline, a damaged or unsafe file, or a network or
            scheduler that cannot be expressed as a denoiser.
        TypeError: an option that a teacher does not have.
        ValueError: an option that does not fit the pipeline.
    """
    check_options(teacher_options, "revision", "local_files_only")
    library = _library()
    folder = _folder(path_or_id, revision, local_files_only)
    try:
        pipeline = read_pipeline(library, folder)
    except Exception as error:  # of a file that it cannot use, diffusers may raise anything
        reason = " ".join(str(error).split())[:600]
        raise TeacherError(f"the pipeline {path_or_id} cannot be a teacher: {reason}") from error
    defaults = _defaults(pipeline, teacher_options)
    defaults["name"] = folder.resolve().name if Path(path_or_id).is_dir() else str(path_or_id)
    return Teacher(pipeline.denoiser, **{**defaults, **teacher_options})


def _library() -> Any:
    try:
        return import_module("diffusers")
    except ImportError as error:
        raise ImportError(
            'pipelines of diffusers need one more package: pip install "deqgen[diffusers]" '
            f"({error})"
        ) from error


def _folder(path_or_id: str | Path, revision: str | None, local_files_only: bool) -> Path:
    """The pipeline's folder, fetched from the Hub unless it is here."""
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.exists():
        raise TeacherError(f"{path} is a file, and a pipeline is a folder with a {INDEX}")
    if isinstance(path_or_id, Path) or path.is_absolute() or len(path.parts) > 2:
        raise TeacherError(f"there is no folder {path}")
    try:
        fetched = snapshot_download(
            path_or_id,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=_wanted_files(),
            ignore_patterns=["*.fp16.*", "*.non_ema.*"],
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TeacherError(
            f"{path_or_id!r} is no folder here, and the Hub gave nothing for it: {reason}"
        ) from error
    return Path(fetched)


def _wanted_files() -> list[str]:
    """Patterns of the files that are read; no weights but the network's."""
    places = ["", "unet/", "transformer/"]  # the oldest pipelines have everything at the top
    weights = [place + name for place in places for name in (WEIGHTS, f"{WEIGHTS}.index.json")]
    configs = [f"{place}config.json" for place in (*places, *(f"{a}/" for a in AUTOENCODERS))]
    return [INDEX, "scheduler_config.json", "scheduler/scheduler_config.json", *configs, *weights]


def _defaults(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of Teacher that the pipeline implies."""
    if pipeline.image_shape is None and "image_shape" not in options:
        raise ValueError("the network does not name its image size: give image_shape=(C, H, W)")
    classes = _choose_classes(pipeline, options)
    named = pipeline.names.keys() == set(range(classes))
    return {
        "image_shape": pipeline.image_shape,
        "num_classes": classes,
        "class_names": [pipeline.names[label] for label in range(classes)] if named else (),
        "sampler": Sampler(schedule=_schedule(pipeline.denoiser)),
    }


def _choose_classes(pipeline: Pipeline, options: Mapping[str, Any]) -> int:
    """Number of classes; tells the denoiser whether a label means "no class"."""
    denoiser, embeddings = pipeline.denoiser, pipeline.embeddings
    if denoiser.num_classes is not None:
        allowed = [denoiser.num_classes, 0]
    else:
        allowed = [embeddings, embeddings - 1] if embeddings else [0]
    classes = int(options.get("num_classes", allowed[0]))
    if classes not in allowed:
        raise ValueError(
            f"num_classes must be {' or '.join(map(str, allowed))} for a network with {embeddings} "
            f"class embeddings, got {classes}"
        )
    if denoiser.num_classes is None and classes < embeddings:
        denoiser.num_classes = classes
    guidance = options.get("guidance")
    guided = getattr(guidance, "scale", guidance or 1) != 1
    if guided and embeddings and denoiser.num_classes is None:
        raise ValueError(
            f'guidance needs a label that means "no class"; if the last of the network\'s '
            f"{embeddings} class embeddings does, give num_classes={embeddings - 1}"
        )
    return classes


def _schedule(denoiser: DiscreteDenoiser) -> Karras:
    """EDM's levels, where the network was trained at them."""
    # Four digits, so that manifests do not hang on the rounding of a machine's cumulative product.
    low, high = (float(f"{level:.4g}") for level in (denoiser.sigma_min, denoiser.sigma_max))
    edm = Karras()
    return Karras(sigma_min=max(edm.sigma_min, low), sigma_max=min(edm.sigma_max, high))
