"""What a folder written by diffusers holds, as far as a teacher needs it.

``model_index.json`` names the parts of a pipeline, and each part has a subfolder (the oldest ones
have everything at the top). Read are the network (``unet`` or ``transformer``), the scheduler's
options, and of an autoencoder its config alone. Code that a pipeline brings along is never run, and
weights are read from safetensors.

Letters: B samples, C channels, H height, W width, T levels of the schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deqgen.teachers.discrete import PREDICTIONS, DiscreteDenoiser
from deqgen.teachers.names import unknown

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model*.safetensors"
PIPELINES = ("DDIMPipeline", "DDPMPipeline", "DiTPipeline", "LDMPipeline", "PNDMPipeline")
UNET, DIT = "UNet2DModel", "DiTTransformer2DModel"
# The last is what a DiT was called when the published ones were saved.
NETWORKS = {UNET: UNET, DIT: DIT, "Transformer2DModel": DIT}
AUTOENCODERS = ("vae", "vqvae")
SCALING_FACTOR = 0.18215  # of an autoencoder whose config is older than this entry
MAX_LEVELS = 100_000  # more than any schedule has; a damaged file may ask for anything
# The options of a scheduler that decide its noise levels; the others decide how it samples.
SCHEDULE_OPTIONS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
)


@dataclass(frozen=True)
class PipelineConfig:
    """What decides a pipeline's estimates, beside its weights, as plain data for manifests.

    Attributes:
        pipeline: class of the pipeline.
        model: class of the network; ``model_config`` its options, as the file gives them.
        scheduler: class of the scheduler; ``schedule`` those options that decide the noise levels.
        prediction_type: what the network predicts.
        autoencoder: class of the autoencoder of a network on latents, else ``None``.
        scaling_factor: latents are the autoencoder's times this: divide by it before decoding.
            ``None`` for a network on pixels.
    """

    pipeline: str
    model: str
    model_config: dict[str, Any]
    scheduler: str
    schedule: dict[str, Any]
    prediction_type: str
    autoencoder: str | None
    scaling_factor: float | None


class PipelineNetwork(nn.Module):
    """A UNet2DModel or DiT, called as :class:`~deqgen.teachers.discrete.DiscreteDenoiser` calls.

    Args:
        model: the network of diffusers.
        config: where it comes from.
        embeddings: rows of its class table, 0 for an unconditional network.
    """

    def __init__(self, model: nn.Module, config: PipelineConfig, embeddings: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.embeddings = embeddings

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """Take x (B, C, H, W), time (B,), label (B,) or None to (B, C or 2C, H, W)."""
        if self.embeddings and label is None:
            raise ValueError("this network knows no estimate without a class: give labels")
        prediction: Tensor = self.model(x, timestep=time, class_labels=label, return_dict=False)[0]
        return prediction  # (B, C or 2C, H, W)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as read.

    Attributes:
        denoiser: in float32; its network is a :class:`PipelineNetwork`.
        embeddings: rows of the network's class table, 0 for an unconditional network.
        image_shape: ``(C, H, W)`` that the network sees; ``None`` where it does not say.
        names: the pipeline's names of its classes, by label.
    """

    denoiser: DiscreteDenoiser
    embeddings: int
    image_shape: tuple[int, int, int] | None
    names: dict[int, str]


def read_pipeline(library: Any, folder: Path) -> Pipeline:
    """Read a pipeline's folder.

    Args:
        library: the package diffusers.
        folder: what ``save_pretrained`` wrote.

    Raises:
        ValueError: a file that is missing, damaged or of a kind that is not read. Reading the
            weights may raise whatever diffusers raises.
    """
    index = read_json(folder / INDEX)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:  # a pipeline with code of its own has a list here
        raise ValueError(unknown("pipeline class", pipeline, PIPELINES))
    # The options first: they take no time, and most of what is refused is refused for them.
    abar, schedule = _read_schedule(library, folder, index)
    autoencoder = _read_autoencoder(folder, index)
    model, name, options = _read_model(library, folder, index)
    config = PipelineConfig(pipeline, name, options, **schedule, **autoencoder)
    embeddings = _embeddings(model, name)
    denoiser = DiscreteDenoiser(
        PipelineNetwork(model, config, embeddings),
        abar,
        prediction_type=config.prediction_type,
        num_classes=embeddings - 1 if name == DIT else None,
    )
    names = index.get("id2label")
    names = names if isinstance(names, dict) else {}
    return Pipeline(
        denoiser=denoiser,
        embeddings=embeddings,
        image_shape=_image_shape(model),
        names={int(key): str(name) for key, name in names.items() if key.isdecimal()},
    )


def _part(folder: Path, index: Mapping[str, Any], name: str) -> tuple[str, Path]:
    """Class and folder of a part that belongs to diffusers itself."""
    entry = index.get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)):
        raise ValueError(f"its {INDEX} names no library and class for {name!r}")
    if entry[0] != "diffusers":
        raise ValueError(
            f"its {name!r} is {entry[1]!r} of {entry[0]!r}, which is not diffusers, and no code "
            "that comes with a pipeline is run"
        )
    return entry[1], folder / name if (folder / name).is_dir() else folder


def _read_schedule(
    library: Any, folder: Path, index: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """``alphas_cumprod`` of the scheduler, ``(T,)``, and its entries of the config."""
    name, place = _part(folder, index, "scheduler")
    options = read_json(place / "scheduler_config.json")
    kind: Any = getattr(library.schedulers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, library.SchedulerMixin)):
        raise ValueError(f"diffusers {library.__version__} has no scheduler {name!r}")
    levels = options.get("num_train_timesteps", 1000)
    if not isinstance(levels, int) or not 3 <= levels <= MAX_LEVELS:
        raise ValueError(f"num_train_timesteps must lie in 3..{MAX_LEVELS}, got {levels!r}")
    if (times := options.get("timestep_type", "discrete")) != "discrete":
        raise ValueError(
            f"its scheduler has timestep_type={times!r}, and only 'discrete' times, from 0 to "
            "num_train_timesteps - 1, can be looked up for a noise level"
        )
    scheduler = kind.from_config(options)  # type: ignore[attr-defined]
    abar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(abar, Tensor) or options.get("use_flow_sigmas"):
        raise ValueError(
            f"its scheduler {name} has no discrete noise schedule (alphas_cumprod); flow matching "
            "and schedules of sigma alone cannot be expressed"
        )
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTIONS:
        raise ValueError(unknown("prediction type", prediction_type, PREDICTIONS))
    return abar, {
        "scheduler": name,
        "schedule": {option: options[option] for option in SCHEDULE_OPTIONS if option in options},
        "prediction_type": prediction_type,
    }


def _read_autoencoder(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Its entries of the config, from its own config alone."""
    for part in AUTOENCODERS:
        entry = index.get(part)
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None:
            path = folder / part / "config.json"
            factor = read_json(path).get("scaling_factor") if path.is_file() else None
            return {
                "autoencoder": str(entry[1]),
                "scaling_factor": SCALING_FACTOR if factor is None else float(factor),
            }
    return {"autoencoder": None, "scaling_factor": None}


def _read_model(
    library: Any, folder: Path, index: Mapping[str, Any]
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The network in float32, its class, and its options as the file gives them."""
    name, place = _part(folder, index, "transformer" if "transformer" in index else "unet")
    if name not in NETWORKS:
        raise ValueError(unknown("network class", name, NETWORKS))
    options = {k: v for k, v in read_json(place / "config.json").items() if k[:1] != "_"}
    _check_options(options)
    if not any(place.glob(WEIGHTS)):
        others = ", ".join(sorted(path.name for path in place.glob("*.bin")))
        found = f"; {others} may run code and is not read" if others else ""
        raise ValueError(f"there is no {WEIGHTS} in {place}{found}")
    model, report = getattr(library, NETWORKS[name]).from_pretrained(
        str(place),
        torch_dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # For weights that the file does not have, diffusers itself goes on with random ones.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, report[kind])):
            raise ValueError(f"weights do not fit the config: {kind.replace('_', ' ')} {keys[:3]}")
    return model, NETWORKS[name], options


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse a network that cannot be called with a fractional time and a label."""
    if "quantization_config" in options:
        raise ValueError("its network is quantised, and a teacher needs the weights as trained")
    time = options.get("time_embedding_type", "positional")
    if time != "positional":
        raise ValueError(
            f"its network has time_embedding_type={time!r}, and only a 'positional' one takes the "
            "times between those of a discrete schedule"
        )
    if (kind := options.get("class_embed_type")) is not None:
        raise ValueError(
            f"its network has class_embed_type={kind!r}, and only None, a table of classes, is "
            "understood"
        )


def _embeddings(model: Any, name: str) -> int:
    """Rows of the class table."""
    if name == DIT:
        return int(model.config.num_embeds_ada_norm) + 1  # the last means "no class"
    return int(model.config.num_class_embeds or 0)


def _image_shape(model: Any) -> tuple[int, int, int] | None:
    size = model.config.sample_size
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(model.config.in_channels), int(height), int(width)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object")
    return data
