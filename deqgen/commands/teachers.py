"""Commands about teachers: convert a checkpoint of EDM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg


def convert_edm(
    checkpoint: Annotated[str, arg(metavar="IN")],
    out: Annotated[Path, arg(metavar="OUT")],
    /,
) -> None:
    """Convert a checkpoint in EDM's format into a teacher's file.

    Nothing in the checkpoint is run. Every name and shape is checked. Weights keep their values, in
    float32 (those of a file in float64 are rounded). NVIDIA's weights are under CC BY-NC-SA 4.0,
    and stay so.

    Args:
        checkpoint: A .pkl file, an https address to download it from, or a published name such as
            edm-cifar10-uncond-vp.
        out: A .safetensors file to write, for load_teacher.
    """
    from deqgen.teachers.edm_file import convert_edm as convert
    from deqgen.teachers.preconditioner import Preconditioner

    teacher = convert(checkpoint, out)
    assert isinstance(teacher.denoiser, Preconditioner)
    kind = type(teacher.denoiser).__name__
    parameters = sum(parameter.numel() for parameter in teacher.denoiser.parameters())
    side = teacher.image_shape[-1]
    classes = f"{teacher.num_classes} classes" if teacher.num_classes else "unconditional"
    print(
        f"{out}: {kind}, {side}x{side}, {classes}, {parameters:,} parameters, "
        f"{teacher.sampler.steps} steps ({teacher.nfe} evaluations)."
    )
