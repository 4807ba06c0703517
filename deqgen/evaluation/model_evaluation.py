"""Measure a model or a file of images: numbers with their fingerprint.

Images are made, looked at and dropped batch by batch.

Letters: N images, B images of a batch, C channels, H and W sides.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from deqgen.data.images import to_float
from deqgen.data.noise import SEED_LIMIT
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.features import FeatureNetwork, load_features
from deqgen.evaluation.frechet import NOT_STATED, Reference, fingerprint
from deqgen.evaluation.generated import GeneratedImages, Solve
from deqgen.evaluation.image_source import ORDER_SEED, ImageSource, open_images
from deqgen.evaluation.label_policy import check_policy, described
from deqgen.evaluation.measuring import Measured, measure
from deqgen.evaluation.metrics import (
    NEED_FEATURES,
    check_count,
    check_metrics,
    check_network,
    kernel_subset_size,
    missing,
    score,
)
from deqgen.evaluation.provenance import Fingerprint, deqgen_version
from deqgen.evaluation.references import open_reference
from deqgen.evaluation.result import ENOUGH, Evaluation, warn_of_few
from deqgen.models.protocol import GenerativeModel, Stopping
from deqgen.processes import Processes
from deqgen_solvers import Solver

DEFAULT_METRICS = ("fd", "is")


def evaluate_model(
    model: GenerativeModel,
    features: FeatureNetwork | str | Path = "cifar10",
    reference: Reference | str | Path | None = "cifar10",
    count: int = ENOUGH,
    *,
    seed_start: int = 0,
    labels: str | int | Sequence[int] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    max_steps: int | None = None,
    solver: str | Solver[Any] | None = None,
    tol: Stopping = "model",
    batch_size: int = 256,
    precision: str = "float32",
    name: str | None = None,
    weights: str = NOT_STATED,
    processes: Processes | None = None,
    progress: bool = False,
) -> Evaluation:
    """Generate the images of ``count`` seeds, and measure them.

    Args:
        model: where it is, in whatever mode; it is left in it.
        features: name, path or URL for :func:`load_features`, which puts the network where the
            model is; or the network.
        reference: what to compare with, as :func:`open_reference` takes it, or a reference. Open it
            once, with ``keep_features`` where metrics need them, if you evaluate often. Rank 0
            alone opens and needs it; the other processes may have None.
        count: N. Others measure 50,000.
        seed_start: the seeds are this and the ``count - 1`` that follow. Those below ten million
            were never trained on.
        labels: ``"uniform"``, ``"random"`` or a class, see :func:`labels_for`; None is
            ``"uniform"`` where the model has classes.
        metrics: of ``"fd"``, ``"kid"``, ``"is"``, ``"pr"``, ``"dc"``.
        max_steps: most steps of the solver, one evaluation of the cell each for most solvers; None
            for the model's own.
        solver: name or object; None for the model's own.
        tol: where a sample's solve ends before that, as for the model's ``forward``.
        batch_size: images at a time; changes the result only by rounding.
        precision: of the generator: ``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"``.
            The features are in float32 in any case.
        name: what the fingerprint calls the model; None for its architecture.
        weights: which weights they are, such as ``"EMA"``, for the fingerprint.
        processes: those that share the seeds. Every one makes this call, and the numbers are rank
            0's: the others get an evaluation without metrics, whose fingerprint says no more of the
            reference than they were given.
        progress: show a progress bar, of rank 0's seeds.

    Warns:
        FewSamplesWarning: below 50,000 images.

    Raises:
        EvaluationInputError: too few images for a metric, no metric that can be had, images that
            are not finite or that the network refuses, a reference of another network.
        ProcessError: rank 0 could not open the reference; it says why.
        ValueError: an unknown name (the nearest match is named), or an option out of range.
    """
    started = time.perf_counter()
    asked = check_request(metrics, count, batch_size)
    check_seeds(seed_start, count)
    solve = Solve(max_steps=max_steps, solver=solver, tol=tol, precision=precision)
    solve.check(model)
    policy = check_policy(labels, model.config)
    place = next(model.parameters()).device
    together = processes or Processes(0, 1, place)
    loud = progress and together.rank == 0
    network, held = open_both(features, reference, asked, place, loud, together)
    seeds = together.share(range(seed_start, seed_start + count))
    made = GeneratedImages(model, seeds, policy, solve, batch_size, loud)
    measured = _look(made if len(seeds) else (), network, asked)  # more processes than images
    parts = together.gather({"measured": measured.plain(), "spent": made.evaluations})
    notes = {
        "images": count,
        "source": name or model.architecture,
        "seeds": f"{seed_start}..{seed_start + count - 1}",
        "labels": described(policy),
        "model_hash": fingerprint(model),
        "weights": weights,
        **solve.described(model),
    }
    return _finished(parts, network, held, asked, notes, started)


def evaluate_images(
    images: str | Path | Tensor,
    features: FeatureNetwork | str | Path = "cifar10",
    reference: Reference | str | Path = "cifar10",
    count: int | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Measure images that exist.

    Args:
        images: a file or folder for :func:`open_images`, or floating-point (N, 3, H, W) in [-1, 1].
        features: as for :func:`evaluate_model`.
        reference: as for :func:`evaluate_model`.
        count: so many of them, the first of a permutation that depends on their number alone (see
            :mod:`deqgen.evaluation.image_source`); None for all.
        metrics: as for :func:`evaluate_model`.
        batch_size: images at a time.
        device: where a network that is loaded here goes.
        progress: show a progress bar.

    Warns:
        FewSamplesWarning: below 50,000 images.

    Raises:
        EvaluationInputError: as :func:`evaluate_model`, and fewer images than ``count``.
        ImageZipError: a damaged archive.
    """
    started = time.perf_counter()
    source = _held(images) if isinstance(images, Tensor) else open_images(images)
    chosen = source.count if count is None else count
    asked = check_request(metrics, chosen, batch_size)
    batches = source.batches(batch_size, chosen)
    place = torch.device(device)
    network, held = open_both(features, reference, asked, place, progress, Processes(0, 1, place))
    measured = _look(_shown(batches, chosen, progress), network, asked)
    if measured.logits is not None:
        measured = replace(measured, logits=source.in_order(measured.logits))
    order = f"permutation of {source.count:,}, seed {ORDER_SEED}"
    notes = {"images": chosen, "source": source.name, "order": order}
    parts = [{"measured": measured.plain(), "spent": None}]
    return _finished(parts, network, held, asked, notes, started)


def check_request(metrics: Sequence[str], count: int, batch_size: int) -> tuple[str, ...]:
    """The metrics in their order; refuse what cannot be measured before anything is opened."""
    asked = check_metrics(metrics)
    check_count(asked, count)
    if batch_size < 1:
        raise EvaluationInputError(f"batch_size must be at least 1, got {batch_size}")
    return asked


def check_seeds(start: int, count: int) -> None:
    """Refuse seeds that are none."""
    if not 0 <= start <= SEED_LIMIT - count:
        raise ValueError(
            f"seeds must lie in 0..{SEED_LIMIT - 1}, got {start} and the {count - 1} that follow"
        )


def open_both(
    features: FeatureNetwork | str | Path,
    reference: Reference | str | Path | None,
    metrics: Sequence[str],
    place: torch.device,
    progress: bool,
    together: Processes,
) -> tuple[FeatureNetwork, Reference | None]:
    """The network, and on rank 0 a reference of it with the feature vectors that metrics need.

    What has to be opened is opened by rank 0 alone while the others wait, so that a reference that
    is refused stops them before they make an image. With ``progress`` it is said which metrics
    cannot be had.

    Raises:
        EvaluationInputError: a reference of another network, or none of the metrics can be had.
    """
    network = (
        load_features(features, device=place) if isinstance(features, str | Path) else features
    )
    if reference is None:
        if together.rank == 0:
            raise EvaluationInputError("rank 0 makes the numbers, and needs a reference for them")
        return network, None
    if isinstance(reference, Reference):
        check_network(network, reference)
        missing(metrics, reference, network)
        return network, reference
    held = None
    if together.rank == 0:
        keep = bool(NEED_FEATURES & set(metrics))
        held = open_reference(reference, network, keep_features=keep, progress=progress)
        for name, reason in missing(metrics, held, network).items():
            if progress:
                print(f"deqgen: {name} will be left out: {reason}.", file=sys.stderr)
    together.barrier()
    return network, held


def _look(batches: Iterable[Tensor], network: FeatureNetwork, metrics: Sequence[str]) -> Measured:
    return measure(
        batches,
        network,
        keep_features=bool(NEED_FEATURES & set(metrics)),
        keep_logits="is" in metrics,
    )


def _finished(
    parts: list[dict[str, Any]] | None,
    network: FeatureNetwork,
    reference: Reference | None,
    metrics: tuple[str, ...],
    notes: dict[str, Any],
    started: float,
) -> Evaluation:
    """Put the processes' parts together, on rank 0, and score them."""
    marks = Fingerprint(
        features=network.name,
        features_hash=network.fingerprint,
        reference=reference.name if reference else NOT_STATED,
        reference_hash=reference.hash if reference else NOT_STATED,
        reference_images=reference.images if reference else 0,
        split=reference.split if reference else NOT_STATED,
        deqgen=deqgen_version(),
        torch=torch.__version__,
        kernel_subset_size=(
            kernel_subset_size(notes["images"], reference)
            if reference and "kid" in metrics
            else None
        ),
        **notes,
    )
    if parts is None or reference is None:
        return Evaluation({}, marks, seconds=time.perf_counter() - started)
    warn_of_few(notes["images"])
    found = score(Measured.joined([p["measured"] for p in parts]), reference, network, metrics)
    spent = [part["spent"] for part in parts]
    nfe = None if None in spent else sum(spent) / notes["images"]
    return Evaluation(found.values, marks, found.left_out, nfe, time.perf_counter() - started)


def _held(images: Tensor) -> ImageSource:
    """Images in memory, as if they were in a file."""
    if images.ndim != 4 or not images.is_floating_point():
        raise EvaluationInputError(
            f"images must be floating point (N, 3, H, W) in [-1, 1], got {images.dtype} "
            f"{tuple(images.shape)}"
        )

    def read(chosen: Sequence[int], size: int) -> Iterator[Tensor]:
        return (images[list(chosen[at : at + size])] for at in range(0, len(chosen), size))

    return ImageSource("a tensor of images", len(images), read)


def _shown(batches: Iterator[Tensor], count: int, progress: bool) -> Iterator[Tensor]:
    """Floating-point batches, with a progress bar."""
    with tqdm(total=count, unit="image", disable=None if progress else True) as bar:
        for images in batches:
            yield images if images.is_floating_point() else to_float(images)
            bar.update(len(images))
