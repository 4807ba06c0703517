"""What a distillation is made of, built from its options or refused in one sentence."""

from __future__ import annotations

from typing import Any

import torch

from deqgen.atomic import file_sha256
from deqgen.commands.distill_options import LookOptions, LossOptions, StudentOptions
from deqgen.data import PairDataset
from deqgen.evaluation import EvaluationInputError
from deqgen.evaluation.features import FeatureNetwork, load_features
from deqgen.evaluation.frechet import Reference
from deqgen.evaluation.metrics import check_count
from deqgen.evaluation.references import open_reference
from deqgen.gradients import Unrolled
from deqgen.models import create_model
from deqgen.models.protocol import GenerativeModel
from deqgen.training.looks import METRICS
from deqgen.training.losses import TrajectoryLoss
from deqgen.training.perceptual import PerceptualDistance, heads_file


def build_model(options: StudentOptions, pairs: PairDataset, seed: int) -> GenerativeModel:
    """The student for these pairs, with initial weights from ``seed``, on the CPU.

    Raises:
        ValueError, TypeError: an unknown name or an option that the model does not have; pairs
            whose images it cannot make.
    """
    channels, height, width = pairs.image_shape
    if height != width:
        raise ValueError(
            f"the images of the pairs in {pairs.directory} are {height}x{width}, and the models "
            "here make square ones"
        )
    asked: dict[str, Any] = {
        "solver": options.solver,
        "gradient": Unrolled(checkpoint=True) if options.checkpoint else options.gradient,
        "max_steps": options.max_steps,
    }
    return create_model(
        options.model,
        image_size=height,
        channels=channels,
        num_classes=pairs.num_classes or None if options.conditional else None,
        generator=torch.Generator().manual_seed(seed),
        **{name: value for name, value in asked.items() if value is not None},
    )


def build_loss(options: LossOptions, pairs: PairDataset) -> TrajectoryLoss:
    """The loss over a trajectory, on the CPU.

    Raises:
        ValueError: an option out of its range, weights that are not those of the distance, or a
            perceptual distance for other than three channels.
        FileNotFoundError: there are no weights.
    """
    if not (options.loss == "lpips" or options.loss == "dists"):
        return TrajectoryLoss(options.loss_decay, options.loss)
    if pairs.image_shape[0] != 3:
        raise ValueError(
            f"--loss {options.loss} compares images of three channels, and those of the pairs in "
            f"{pairs.directory} have {pairs.image_shape[0]}"
        )
    distance = PerceptualDistance(options.loss, options.perceptual_vgg, options.perceptual_heads)
    return TrajectoryLoss(options.loss_decay, distance)


def loss_digests(options: LossOptions) -> dict[str, dict[str, str]]:
    """SHA-256 of each file of weights that the loss uses, for the configuration; else nothing."""
    if options.perceptual_vgg is None:
        return {}
    heads = options.perceptual_heads or heads_file(options.loss)
    files = {"vgg": options.perceptual_vgg, "heads": heads}
    return {"perceptual_sha256": {name: file_sha256(path) for name, path in files.items()}}


def open_judges(
    options: LookOptions, shape: tuple[int, ...], device: torch.device
) -> tuple[FeatureNetwork, Reference]:
    """What evaluates on the way; tried on two grey images, so that it does not fail after hours.

    Args:
        options: names of the features and the reference, number of images.
        shape: ``(C, H, W)`` of the images.
        device: of this process.

    Raises:
        EvaluationInputError: the network cannot look at such images, too few of them are to be
            measured, or the reference is not of this network.
        FileNotFoundError: there is no such file.
    """
    check_count(METRICS, options.evaluate_count)
    network = load_features(options.evaluate_features, device=device)
    try:
        network.measure(torch.zeros(2, *shape, device=device))
    except EvaluationInputError as error:
        raise EvaluationInputError(
            f"--evaluate-features {options.evaluate_features} cannot look at these images: {error}"
        ) from None
    return network, open_reference(options.evaluate_reference, network)
