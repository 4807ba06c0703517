"""Sample from a trained model: one seed, one image, whatever the batch, up to rounding.

Letters: N seeds, B samples of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Batch:
    """Images of some seeds, and what they cost.

    Attributes:
        seeds: B of them.
        images: in about [-1, 1], ``(B, C, H, W)`` float32 on the CPU.
        evaluations: ``(B,)`` int64 on the CPU, evaluations of the equilibrium's cell that each
            sample took: one a step, and the first. A solver that evaluates it within a step too
            (Newton-Krylov, a line search) does so for the batch: then each has the batch's number.
            None for a model without an equilibrium.
    """

    seeds: Sequence[int]
    images: Tensor
    evaluations: Tensor | None


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
    ``batch_size`` or of the other seeds, up to the rounding of the linear algebra: of 256 levels,
    a few pixels may differ by one.

    Args:
        model: a model of :mod:`deqgen.models`. It is run in evaluation mode and left in the mode in
            which it was.
        seeds: N integers in ``0..2**32 - 1``. Those below ten million were never trained on.
        labels: one class for all, or N of them; ``None`` for an unconditional model.
        batch_size: images at a time.
        max_steps: budget of the solve: evaluations of the equilibrium's cell, at most, and those
            on top that a solver makes within a step; ``None`` for the model's own.
        tol: where a sample's solve ends before that, as for the model's ``forward``.
        solver: name or object; ``None`` for the model's own.
        device: where to run, moving the model there; ``None`` for where the model is.
        progress: show a progress bar.

    Returns:
        Images in about [-1, 1], ``(N, C, H, W)`` float32 on the CPU.

    Raises:
        ValueError: a seed or label out of range, a wrong number of labels, labels for an
            unconditional model or none for a conditional one, or ``batch_size`` below 1.

    Example:
        >>> generate(create_model("GET-N/8"), seeds=range(3)).shape
        torch.Size([3, 3, 32, 32])
    """
    seeds = [int(seed) for seed in seeds]
    batches = generate_batches(
        model,
        seeds,
        labels,
        batch_size=batch_size,
        max_steps=max_steps,
        tol=tol,
        solver=solver,
        device=device,
    )
    config = cast(ModelConfig, model.config)
    images = [torch.empty((0, config.channels, config.image_size, config.image_size))]
    with tqdm(total=len(seeds), unit="image", disable=not progress, desc="generate") as bar:
        for batch in batches:
            images.append(batch.images)  # (B, C, H, W)
            bar.update(len(batch.images))
    return torch.cat(images)  # (N, C, H, W)


def generate_batches(
    model: nn.Module,
    seeds: Iterable[int] | Tensor,
    labels: int | Sequence[int] | Tensor | None = None,
    *,
    batch_size: int = 64,
    least: int = 1,
    max_steps: int | None = None,
    tol: Stopping = "model",
    solver: str | Solver[Any] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """:func:`generate`, batch by batch: no more than one batch of images is held.

    The model is in evaluation mode from the first batch on until the iterator ends or is closed.

    Args:
        model, seeds, labels, batch_size, max_steps, tol, solver, device: as for :func:`generate`.
        least: samples that the model is given at least; a smaller batch is filled up with copies
            of its first sample, whose images are dropped. Kernels may be others for one sample than
            for many, and so the last digit of an image.

    Returns:
        An iterator over the batches, in the order of the seeds.

    Raises:
        ValueError: as :func:`generate`, before the first batch; a seed out of range in its batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    config = cast(ModelConfig, model.config)
    seeds = [int(seed) for seed in seeds]
    classes = _labels(labels, len(seeds), config.num_classes or 0)  # (N,) or None
    if device is not None:
        model.to(device)
    place = next((p.device for p in model.parameters()), torch.device(device or "cpu"))
    # Only what was asked for, so that a model of one's own need not know all of them.
    options = {"max_steps": (max_steps, None), "tol": (tol, "model"), "solver": (solver, None)}
    asked = {name: value for name, (value, default) in options.items() if value != default}
    starts = range(0, len(seeds), batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    chosen = ((seeds[part], None if classes is None else classes[part]) for part in parts)
    return _evaluating(model, (_run(model, place, *each, asked, least) for each in chosen))


def _evaluating(model: nn.Module, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of a model that is in evaluation mode meanwhile, each of its parts."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield from batches
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def _run(
    model: nn.Module,
    place: torch.device,
    seeds: list[int],
    label: Tensor | None,
    asked: dict[str, Any],
    least: int,
) -> Batch:
    config = cast(ModelConfig, model.config)
    rows = [*range(len(seeds)), *[0] * (least - len(seeds))]  # B of them or more
    generators = generators_for(seeds[row] for row in rows)
    shape = (config.channels, config.image_size, config.image_size)
    noise = noise_for(generators, shape).to(place)  # (B, C, H, W)
    label = None if label is None else label[rows].to(place)  # (B,)
    output = model(noise, label, generator=generators, **asked)
    images = output.image.float().cpu()  # (B, C, H, W)
    return Batch(seeds, images[: len(seeds)], _evaluations(output, len(seeds)))


def _evaluations(output: Any, count: int) -> Tensor | None:
    solution = None if output.equilibrium is None else output.equilibrium.solution
    if solution is None:
        return None
    spent: Tensor = solution.steps.cpu() + (solution.residual is not None)  # (B,) or more rows
    if len(spent) and solution.nfe > int(spent.max()):  # there were calls within steps
        spent = torch.full_like(spent, solution.nfe)
    return spent[:count]


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
    if chosen.is_floating_point() and chosen.numel():  # an empty list has a dtype of its own
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
