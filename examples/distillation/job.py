"""What a distillation run is asked to do: see distill_cifar.py and distill_imagenet.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqgen import create_model, list_models
from deqgen.data import PairDataset
from deqgen.models.cost import model_multiply_adds
from deqgen.processes import pick_device
from deqgen.teachers import Teacher
from deqgen.teachers.names import unknown
from distillation.presets import Preset


@dataclass(frozen=True)
class Options:
    """What to run; a run continues only under the options it began with."""

    preset: str = "demo"
    """smoke (a minute, for tests), demo, or paper (a million pairs: for a GPU)."""
    output_dir: Path | None = None
    """Where everything goes; runs/EXAMPLE-PRESET by default."""
    model: str | None = None
    """Name of the student, such as GET-T/2 or DEQ-UNet-T; the preset's by default. It is compared
    with the ViT of the fewest multiply-adds an image that are no fewer than the student's at its
    full number of steps, among those whose patches are no coarser than the student's (than 4
    pixels, if the student works on single pixels)."""
    pairs: str | None = None
    """How many pairs to make, or a folder of pairs made earlier. The default is the preset's
    number, but no more than --images will use."""
    images: int | None = None
    """Length of the training, in images; the preset's by default."""
    seed: int = 0
    """Of the pairs, the initial weights and the training."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


class Task:
    """What an example brings to the common flow: a teacher, presets and a measure of quality.

    Attributes:
        name: of the example.
        presets: by name.
        scores: lines of the final table, ``(title, key of measure's result, style)``.
        caveat: a sentence below the table, about the measure; in braces, keys of its result.
    """

    name: str
    presets: Mapping[str, Preset]
    scores: Sequence[tuple[str, str, str]] = ()
    caveat: str = ""

    def open_teacher(self, device: torch.device, precision: str) -> Teacher:
        """Load the teacher, or refuse before any work what could not be measured at the end."""
        raise NotImplementedError

    def compare_with(self, images: Tensor) -> None:
        """Take the teacher's images, once, before anything is measured."""

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """Judge images ``(N, C, H, W)``; the result holds the number of ``images``."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What else decides the results, for config.json."""
        return {}


@dataclass(frozen=True)
class Job:
    """The options with every blank filled in."""

    task: Task
    preset: Preset
    directory: Path
    teacher: Teacher
    student: str
    model: str
    vit: str
    pairs: int | Path
    images: int
    seed: int
    device: torch.device
    precision: str

    @property
    def classes(self) -> int | None:
        return self.teacher.num_classes or None

    @property
    def latents(self) -> bool:
        return makes_latents(self.teacher)

    @property
    def models(self) -> dict[str, str]:
        """What the two students are called, by architecture, and the names of their sizes."""
        return {self.student: self.model, "ViT": self.vit}

    def describe(self) -> dict[str, Any]:
        """All that decides the results, for config.json."""
        return {
            "preset": asdict(self.preset),
            "teacher": self.teacher.describe(),
            "model": self.model,
            "vit": self.vit,
            "pairs": self.pairs if isinstance(self.pairs, int) else describe_pairs(self.pairs),
            "images": self.images,
            "seed": self.seed,
            "device": str(self.device),
            "precision": self.precision,
            **self.task.describe(),
        }

    def labels(self, count: int) -> Tensor | None:
        """Classes in turn, (count,); None if there are none."""
        return torch.arange(count) % self.classes if self.classes else None


def resolve(task: Task, options: Options) -> Job:
    """Check the options and fill in what they leave to the preset."""
    if options.preset not in task.presets:
        raise ValueError(unknown("preset", options.preset, task.presets))
    preset = task.presets[options.preset]
    device = pick_device(options.device)
    precision = "bfloat16" if has_bfloat16(device) else "float32"
    teacher = task.open_teacher(device, precision)
    model = options.model or preset.get
    images = preset.images if options.images is None else options.images
    if images < 1:
        raise ValueError(f"--images must be at least 1, got {images}")
    student, vit = pick_students(model, teacher.image_shape)
    return Job(
        task=task,
        preset=preset,
        directory=options.output_dir or Path("runs") / f"{task.name}-{options.preset}",
        teacher=teacher,
        student=student,
        model=model,
        vit=vit,
        pairs=pick_pairs(options.pairs, preset.pairs, images),
        images=images,
        seed=options.seed,
        device=device,
        precision=precision,
    )


def makes_latents(teacher: Teacher) -> bool:
    """Whether the teacher's samples are latents, which an autoencoder would make images of.

    Its description has their scaling factor then; those of some autoencoders have three channels,
    as images have.
    """
    config = teacher.describe()["denoiser"].get("config") or {}
    return teacher.image_shape[0] != 3 or config.get("scaling_factor") is not None


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are fast on the device, and not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    query = getattr(torch.cpu, "get_capabilities", dict)  # older releases do not say
    return any(query().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


@cache  # building the networks takes a second or two
def pick_students(name: str, image_shape: tuple[int, int, int]) -> tuple[str, str]:
    """Architecture of the model ``name``, and the cheapest ViT that costs no less, or the dearest.

    Only patches no coarser than the model's count, or than 4 pixels where it has none: on few
    tokens a ViT buys its multiply-adds with parameters (ViT-L/8 has 303 million) and is slower to
    train than one of equal cost on more.
    """
    size = {"channels": image_shape[0], "image_size": image_shape[1]}
    with torch.device("meta"):
        model = create_model(name, **size)
        if not hasattr(model.config, "max_steps"):
            raise ValueError(
                f"--model must be an equilibrium model such as GET-T/2, and {name} is not"
            )
    patch = model.config.patch_size
    coarsest = 4 if patch == 1 else patch
    least = model_multiply_adds(name, **size)
    vits = [vit for vit in list_models("ViT-*") if int(vit.rpartition("/")[2]) <= coarsest]
    costs = {vit: model_multiply_adds(vit, **size) for vit in vits}
    enough = [vit for vit in costs if costs[vit] >= least] or list(costs)
    return model.architecture, min(enough, key=lambda vit: abs(costs[vit] - least))


def pick_pairs(text: str | None, default: int, images: int) -> int | Path:
    """Turn --pairs into a number of pairs to make, or a folder to read."""
    if text is None:
        return max(2, min(default, images))
    try:
        count = int(text)
    except ValueError:
        return Path(text)
    if count < 2:
        raise ValueError(f"--pairs must be at least 2, or a folder, got {count}")
    return count


def describe_pairs(folder: Path) -> dict[str, str]:
    """The folder with the digest of what is in it: the same path may hold other pairs tomorrow."""
    return {"folder": str(folder.resolve()), "digest": PairDataset(folder).manifest.digest}
