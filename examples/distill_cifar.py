"""Distil a CIFAR-10 diffusion teacher into a one-step Generative Equilibrium Transformer.

    python examples/distill_cifar.py                    # the demo: about ten minutes on two cores
    python examples/distill_cifar.py --preset paper --device cuda --teacher edm-cifar10-cond-vp

The teacher turns noise into images in tens of network evaluations, once; the GET learns that map
from the noise/image pairs alone and repeats it in one pass (arXiv 2401.08639). A ViT of no smaller
cost learns from the same pairs for as many images, for comparison. The demo downloads nothing:
teacher and measuring network ship with the package. The preset paper is GET-B/2 on a million pairs,
and wants a teacher worth it: that of EDM is fetched once (weights under CC BY-NC-SA 4.0).

It writes config.json, pairs/, log.csv, student.safetensors and .json, metrics.json, samples.png and
loss.png into the output folder. Interrupt it whenever you like: the same command continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor

from deqgen import evaluation
from deqgen.teachers import Teacher, load_teacher
from distillation import job
from distillation.presets import CIFAR
from distillation.run import main


@dataclass(frozen=True)
class Options(job.Options):
    """What to run; a run continues only under the options it began with."""

    teacher: str = "cifar10-small"
    """Whatever load_teacher opens: a name, a file that save_teacher wrote, a checkpoint of EDM."""
    conditional: bool = True
    """Whether teacher and students are told the class to show."""


class Cifar(job.Task):
    name = "distill_cifar"
    presets = CIFAR
    scores = (
        ("fd_cifar10 (less is better)", "fd_cifar10", ".2f"),
        ("inception-style score (of 10)", "inception_style_score", ".2f"),
        ("class recognised", "accuracy", "%"),
    )
    caveat = "fd_cifar10 is measured on {images} images and is not FID."

    def __init__(self, options: Options) -> None:
        self.options = options

    def open_teacher(self, device: torch.device, precision: str) -> Teacher:
        teacher = load_teacher(self.options.teacher, device=device, precision=precision)
        latents = job.makes_latents(teacher)
        if latents or teacher.image_shape != (3, 32, 32) or teacher.num_classes not in (0, 10):
            raise ValueError(
                f"teacher {teacher.name!r} makes {'latents' if latents else 'images'} of shape "
                f"{teacher.image_shape} in "
                f"{teacher.num_classes} classes; this example measures with a CIFAR-10 classifier "
                "and needs (3, 32, 32) and 10 classes, or none"
            )
        return teacher if self.options.conditional else teacher.unconditional()

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
        return evaluation.evaluate(images, labels).to_dict()


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    main(Cifar(options), options)
