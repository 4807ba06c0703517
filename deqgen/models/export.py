"""A model as a fixed program, for runtimes without Python.

A solve to a tolerance looks at residuals to see when to stop, which no graph can hold. So a fixed
number of evaluations is exported, of which the last image is taken; by default they are plain
iterations, which every runtime can do, while ONNX knows no linear systems and so no Anderson.

Letters: B samples, C channels, H and W pixels.
"""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deqgen.atomic import replacing
from deqgen.models.protocol import GenerativeModel
from deqgen_solvers import Solver

OPSET = 18


class FixedBudget(nn.Module):
    """noise, and label for a conditional model, to image, in evaluation.

    Args:
        model: what to run; it is put into evaluation mode.
        max_steps: evaluations of an equilibrium model's cell; default: the model's own.
        solver: what leads from one to the next.
    """

    def __init__(
        self,
        model: GenerativeModel,
        max_steps: int | None = None,
        solver: str | Solver[Any] = "picard",
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.max_steps, self.solver = max_steps, solver

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Take noise (B, C, H, W), and label (B,), to images (B, C, H, W)."""
        out = self.model(noise, label, max_steps=self.max_steps, tol=None, solver=self.solver)
        image: Tensor = out.image
        return image


def export_program(
    model: GenerativeModel, *, max_steps: int | None = None, solver: str | Solver[Any] = "picard"
) -> ExportedProgram:
    """Trace a model with :func:`torch.export.export`; the batch size stays free.

    Args:
        model: any model of the zoo; a denoiser (``noise_level=True``) is none of these.
        max_steps: evaluations of an equilibrium model's cell; default: the model's own.
        solver: name or object of what leads from one to the next.

    Returns:
        A program of noise ``(B, C, H, W)`` in the model's dtype and, for a conditional model, label
        ``(B,)`` int64. Its ``module()`` returns images ``(B, C, H, W)``.

    Raises:
        ValueError: a model that takes noise levels, or ``max_steps`` below 1.
    """
    if model.takes_noise_level:
        raise ValueError(
            f"this {model.architecture} takes a noise level and is sampled in many evaluations; "
            "what is exported is a one-step generator."
        )
    inputs = _example(model)
    batch = Dim("batch")
    shapes = tuple({0: batch} for _ in inputs)
    was_training = model.training
    try:
        with torch.no_grad():
            program = FixedBudget(model, max_steps, solver)
            return torch.export.export(program, inputs, dynamic_shapes=shapes)
    finally:
        model.train(was_training)


def export_onnx(
    model: GenerativeModel, path: str | os.PathLike[str], *, max_steps: int | None = None
) -> Path:
    """Write a model as an ONNX file (opset 18) of a free batch size, weights inside.

    Args:
        model: any model of the zoo, in float32.
        path: ends in ``.onnx``; the file appears whole or not at all.
        max_steps: as in :func:`export_program`; plain iterations.

    Returns:
        The path. Inputs are called ``noise`` and, for a conditional model, ``label``; the output
        ``image``.

    Raises:
        ImportError: without the packages of the extra ``export``.
        ValueError: another ending, another dtype, or what :func:`export_program` refuses.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX file ends in .onnx; got {str(path)!r}.")
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(f"models are exported to ONNX in float32, this one is in {dtype}.")
    if any(find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ImportError("ONNX files need two more packages: pip install 'deqgen[export]'.")
    program = export_program(model, max_steps=max_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about its own future
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["noise", "label"][: 2 if model.config.num_classes else 1],
            output_names=["image"],
            verbose=False,
        )
    with replacing(path) as partial:
        written.save(partial)
    return path


def _example(model: GenerativeModel) -> tuple[Tensor, ...]:
    """Inputs of two samples; a single one would be taken for a constant."""
    like = next(model.parameters())
    noise = torch.zeros(2, *model.config.image_shape, dtype=like.dtype, device=like.device)
    if not model.config.num_classes:
        return (noise,)
    return noise, torch.zeros(2, dtype=torch.int64, device=like.device)
