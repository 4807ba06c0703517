"""Distil a class-conditional ImageNet 64x64 diffusion teacher into a one-step GET.

    python examples/distill_imagenet.py --preset smoke      # the whole path in a minute, on a CPU
    python examples/distill_imagenet.py --preset paper --device cuda \\
        --teacher edm-imagenet64-cond-adm --reference imagenet64.npz

The flow, the presets and the outputs are those of distill_cifar.py, with 1,000 classes and images
of 64x64. The teacher is EDM's ADM network; the student is GET-B/4 under the preset "paper" (81
GMACs an image) or, with --model GET-B/2, GET at patch 2 (348 GMACs). "smoke" makes a tiny teacher
with random weights, which shows that everything works and nothing else; "demo" and "paper" need a
real one, and a GPU.

Quality is fd_box32: images are averaged to 32x32, and the Frechet distance is that of the CIFAR-10
classifier which ships with the package. It sees composition and colour and no fine detail, knows
none of ImageNet's classes, and is not FID. The distance is to --reference or, without one, to the
teacher's own images. pair_l1 is the distance to the teacher's images for noise held out.

A latent teacher, --teacher diffusers:PATH, works as well: students learn the latents, no decoder is
involved, only pair_l1 is measured, and samples.png shows three channels of the latents as colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from deqgen import evaluation
from deqgen.teachers import Sampler, Teacher, load_teacher, save_teacher
from distillation import job
from distillation.presets import IMAGENET
from distillation.run import main

SIDE, CLASSES = 64, 1000


@dataclass(frozen=True)
class Options(job.Options):
    """What to run; a run continues only under the options it began with."""

    teacher: str | None = None
    """Whatever load_teacher opens: edm-imagenet64-cond-adm, which is downloaded; a checkpoint of
    EDM, or what deqgen convert-edm made of it; diffusers:PATH, a pipeline of diffusers. A sampler
    that adds noise on the way, as EDM's published one for ImageNet does, is replaced by 40 Heun
    steps (79 evaluations): a student can only learn what the first noise decides. Under the preset
    smoke the default is a tiny network with random weights."""
    reference: Path | None = None
    """Images to compare with, under the preset smoke as well: an EDM-style zip, which is square PNG
    or JPEG files of one size beside a dataset.json of their classes, as deqgen data imagenet64 or
    deqgen data folder writes it; or the .npz that deqgen data stats makes of it, which is read at
    once."""


class ImageNet(job.Task):
    name = "distill_imagenet"
    presets = IMAGENET
    scores = (("fd_box32 (less is better)", "fd_box32", ".2f"),)
    caveat = (
        "fd_box32 is measured on {images} images averaged to 32x32 and compared with {reference}; "
        "it is not FID."
    )

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reference: evaluation.Reference | None = None
        self.latent = False

    def open_teacher(self, device: torch.device, precision: str) -> Teacher:
        where = {"device": device, "precision": precision}
        teacher = deterministic(find_teacher(self.options, where))
        self.latent = job.makes_latents(teacher)
        if self.latent:
            self.scores = ()
            self.caveat = "These are latents: their L1 distance is all that is measured."
        if not self.latent and teacher.image_shape[1] % 32:
            raise ValueError(
                f"teacher {teacher.name!r} makes images of shape {teacher.image_shape}; this "
                "example averages images to 32x32 to measure them and needs a multiple of that"
            )
        if self.latent and self.options.reference:
            raise ValueError(
                f"--reference is about images, and teacher {teacher.name!r} makes latents of shape "
                f"{teacher.image_shape}"
            )
        if self.options.reference:
            self.reference = evaluation.load_archive_reference(self.options.reference)
        return teacher

    def compare_with(self, images: Tensor) -> None:
        if not self.latent and not self.options.reference:
            small = evaluation.box_to_32(images)
            name = f"these {len(images)} images of the teacher"
            self.reference = evaluation.make_reference(small, name)

    def measure(self, images: Tensor, labels: Tensor | None) -> dict[str, Any]:
        if self.reference is None:
            return {"images": len(images)}
        report = evaluation.evaluate(evaluation.box_to_32(images), reference=self.reference)
        return {
            "fd_box32": report.fd_cifar10,
            "images": report.images,
            "reference": report.reference,
        }

    def describe(self) -> dict[str, Any]:
        return {"reference": self.reference.name if self.reference else None}


def find_teacher(options: Options, where: dict[str, Any]) -> Teacher:
    """The teacher that was asked for, or the preset's."""
    if options.teacher:
        return load_teacher(options.teacher, **where)
    if options.preset != "smoke":
        raise ValueError(
            f"the preset {options.preset} needs a teacher: --teacher edm-imagenet64-cond-adm, "
            "which load_teacher downloads, or the file that `deqgen convert-edm "
            "edm-imagenet-64x64-cond-adm.pkl adm.safetensors` makes of a downloaded one"
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        card = {"name": "tiny-random-adm", "sampler": Sampler(steps=8)}
        save_teacher(tiny_adm(), path, card)
        return load_teacher(path, **where)


def deterministic(teacher: Teacher) -> Teacher:
    """Without fresh noise on the way: what a student cannot see it cannot learn."""
    if not getattr(teacher, "stochastic", False):
        return teacher
    return teacher.replace(sampler=replace(teacher.sampler, churn=None, steps=40))


def tiny_adm() -> nn.Module:
    """EDM's ImageNet teacher with few channels and random weights, the same each time."""
    from deqgen.teachers.preconditioning import EDMPrecond

    tiny = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": ()}
    # PyTorch's layers draw from the global generator.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = EDMPrecond(SIDE, 3, CLASSES, model_type="DhariwalUNet", **tiny)
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():  # or every branch would end in zero
                nn.init.xavier_uniform_(weight, gain=0.3)
        # Near its Gaussian prior, so that images stay near [-1, 1] and fit into bytes.
        network.model.out_conv.weight.mul_(0.1)
    return network


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    main(ImageNet(options), options)
