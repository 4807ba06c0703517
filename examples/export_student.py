"""Make an embedded student of a trained model: weights in half precision, config and model card.

    python examples/export_student.py runs/00000-GET-N-4-scaling-pairs --pairs runs/scaling-pairs \\
        --training "196,608 images by ..." --out deqgen/assets/get_nano_cifar10.safetensors

Written are OUT.safetensors, OUT.json and the card OUT.md, whose text is export_student.md. The
weights are rounded first, so the card says what the rounded student is worth; its teacher, whose
images are those of the pairs, is measured on as many of them. What lies in deqgen/assets under a
student's name is what ``open_model`` opens by that name: commit all three.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from deqgen.atomic import write_text
from deqgen.data import PairDataset
from deqgen.evaluation import FewSamplesWarning, evaluate_images, evaluate_model
from deqgen.models import (
    EquilibriumModel,
    GenerativeModel,
    load_model,
    open_model,
    parameter_count,
    save_model,
)

CARD = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")  # with fields to fill in


@dataclass(frozen=True)
class Options:
    """What to export, and what its card says."""

    model: tyro.conf.Positional[Path]
    """The trained student: a .safetensors file, or the folder of a training run."""
    pairs: Path
    """The pairs that it was trained on, which name the teacher."""
    training: str
    """How it was trained, for the card: images seen, command."""
    out: Path
    """The .safetensors file to write, with .json and .md beside it."""
    teacher: str = ""
    """What to say of the teacher beside its name, for the card: images seen."""
    name: str = "get-nano-cifar10"
    """What the student is called."""
    count: int = 3072
    """Images that are measured, of the student and of its teacher."""


def write_card(options: Options, model: GenerativeModel, pairs: PairDataset) -> str:
    """Measure the student and its teacher and write the card; return what was measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)  # the card gives the number of images
        student = evaluate_model(model, count=options.count, name=options.name, progress=True)
        images = pairs.__getitems__(range(options.count))["image"]
        teacher = evaluate_images(images, progress=True)
    solves = isinstance(model, EquilibriumModel)
    config, settings = model.config, pairs.manifest.settings["teacher"]
    numbers = {
        "fd": student.metrics["fd_cifar10"],
        "score": student.metrics["is_cifar10"],
        "teacher_fd": teacher.metrics["fd_cifar10"],
        "teacher_score": teacher.metrics["is_cifar10"],
    }
    text = CARD.format(
        name=options.name,
        file=options.out.stem,
        classes="A class-conditional" if config.num_classes else "An unconditional",
        size=config.image_size,
        megabytes=options.out.stat().st_size / 1e6,
        architecture=described(model),
        parameters=parameter_count(model),
        steps=f"{model.config.max_steps} iterations" if solves else "no equilibrium",
        teacher=", ".join(part for part in (settings["name"], options.teacher) if part),
        pairs=len(pairs),
        nfe=pairs.manifest.nfe,
        total=len(pairs) * pairs.manifest.nfe,
        training=options.training,
        count=options.count,
        last=options.count - 1,
        **numbers,
    )
    write_text(options.out.with_suffix(".md"), text)
    return "  ".join(f"{name} {value:.2f}" for name, value in numbers.items())


def described(model: GenerativeModel) -> str:
    """The architecture with its sizes."""
    config = model.config
    sizes = [f"patches of {config.patch_size}x{config.patch_size}"]
    if width := getattr(config, "width", None):
        sizes.insert(0, f"width {width}")
    return f"{model.architecture} ({', '.join(sizes)})"


def main(options: Options) -> None:
    if options.out.suffix != ".safetensors":
        raise ValueError(f"--out is a .safetensors file, got {str(options.out)!r}")
    pairs = PairDataset(options.pairs)
    if not 2 <= options.count <= len(pairs):
        raise ValueError(f"--count must lie in 2..{len(pairs)}, the pairs that there are")
    student = open_model(options.model).to(torch.float16)
    if not all(weight.isfinite().all() for weight in student.parameters()):
        raise ValueError(f"a weight of {options.model} is not finite in half precision")
    save_model(student, options.out)
    print(write_card(options, load_model(options.out).float(), pairs))
    print(f"written: {options.out} with .json and .md")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command begins anew")
    except (ValueError, OSError) as error:
        sys.exit(f"export_student: {error}")
