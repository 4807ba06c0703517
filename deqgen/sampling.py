"""Sample from a trained model: one seed, one image, whatever the batch.

Letters: N seeds, B samples of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from deqgen.data.noise import generators_for, noise_for
from deqgen.models.protocol import Stopping
from deqgen_solvers import Solver


class ModelConfig(Protocol):
    """The part of a model's config that sampling reads."""

    @property
    def image_size(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def num_classes(self) -> int | None: ...


@torch.no_grad()
def generate(
    model: nn.Module,
    seeds: Iterable[int] | Tensor,
    labels: int | Sequence[int] | Tensor | None = None,
    *,
    batch_size: int = 64,
    max_steps: int | None = None,
    tol: Stopping = "model",
    solver: str | Solver[Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Generate one image a seed.

    Each seed has its own generator, which gives the noise first and then the start z0 of the
    equilibrium. So an image is a function of the model, its seed, label and solve, and not of
    ``batch_size`` or of the other seeds, up to the rounding of the linear algebra.

    Args:
        model: a model of :mod:`deqgen.models`. It is run in evaluation mode and left in the mode in
            which it was.
        seeds: N integers in ``0..2**32 - 1``. Those below ten million were never trained on.
        labels: one class for all, or N of them; ``None`` for an unconditional model.
        batch_size: images at a time.
        max_steps: evaluations of the equilibrium's cell, at most; ``None`` for the model's own.
        tol: where a sample's solve ends before that, as for the model's ``forward``.
        solver: name or object; ``None`` for the model's own.
        device: where to run, moving the model there; ``None`` for where the model is.
        progress: show a progress bar.

    Returns:
        Images in about [-1, 1], ``(N, C, H, W)`` float32 on the CPU.

    Raises:
        ValueError: a seed or label out of range, a wrong number of labels, labels for an
        unconditional
            model or none for a conditional one, or ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    config = cast(ModelConfig, model.config)
    seeds = [int(seed) for seed in seeds]
    classes = _labels(labels, len(seeds), config.num_classes or 0)  # (N,) or None
    shape = (config.channels, config.image_size, config.image_size)
    if device is not None:
        model.to(device)
    place = next((p.device for p in model.parameters()), torch.device(device or "cpu"))
    # Only what was asked for, so that a model of one's own need not know all of them.
    options = {"max_steps": (max_steps, None), "tol": (tol, "model"), "solver": (solver, None)}
    asked = {name: value for name, (value, default) in options.items() if value != default}
    images = [torch.empty((0, *shape))]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with tqdm(total=len(seeds), unit="image", disable=not progress, desc="generate") as bar:
            for start in range(0, len(seeds), batch_size):
                chosen = slice(start, start + batch_size)
                generators = generators_for(seeds[chosen])
                noise = noise_for(generators, shape).to(place)  # (B, C, H, W)
                label = None if classes is None else classes[chosen].to(place)  # (B,)
                output = model(noise, label, generator=generators, **asked)
                images.append(output.image.float().cpu())  # (B, C, H, W)
                bar.update(len(noise))
    finally:
        for module, mode in modes:
            module.training = mode
    return torch.cat(images)  # (N, C, H, W)


def _labels(
    labels: int | Sequence[int] | Tensor | None, count: int, num_classes: int
) -> Tensor | None:
    """Labels as ``(N,)`` int64, checked."""
    if labels is None:
        if num_classes:
            raise ValueError(
                f"this model is class-conditional: give labels in 0..{num_classes - 1}"
            )
        return None
    if not num_classes:
        raise ValueError("this model is unconditional and takes no labels")
    chosen = torch.as_tensor(labels)
    if chosen.is_floating_point():
        raise ValueError(f"labels must be integers, got {chosen.dtype}")
    if chosen.ndim == 0:
        chosen = chosen.expand(count)
    if chosen.shape != (count,):
        raise ValueError(f"{count} seeds need {count} labels, got shape {tuple(chosen.shape)}")
    if count and (int(chosen.min()) < 0 or int(chosen.max()) >= num_classes):
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got {int(chosen.min())}..{int(chosen.max())}"
        )
    return chosen.to(torch.int64).cpu()
