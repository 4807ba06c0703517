"""Metrics by name: what each needs, and how its numbers are called.

| name   | numbers                                     | needs                                    |
| ------ | ------------------------------------------- | ---------------------------------------- |
| ``fd`` | Frechet distance                            | moments of the reference                 |
| ``kid``| kernel distance, mean and ``_std``          | the reference's feature vectors          |
| ``is`` | Inception score, mean and ``_std``          | a network with classes, no reference     |
| ``pr`` | ``precision``, ``recall``                   | the reference's feature vectors          |
| ``dc`` | ``density``, ``coverage``                   | the reference's feature vectors          |

``fid``, ``kid`` and ``is`` are the names of Inception's numbers alone; on another network they are
``fd_NAME``, ``kd_NAME`` and ``is_NAME``, as ``fd_cifar10``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.features import FeatureNetwork
from deqgen.evaluation.frechet import NOT_STATED, Reference, frechet_distance
from deqgen.evaluation.inception_score import SPLITS, inception_score
from deqgen.evaluation.kernel import kernel_distance
from deqgen.evaluation.manifold import DENSITY_NEIGHBOURS, Manifold, manifold_scores
from deqgen.evaluation.measuring import Measured
from deqgen.teachers.names import unknown

METRICS = ("fd", "kid", "is", "pr", "dc")
"""Names of the groups of numbers that an evaluation can be asked for."""

NEED_FEATURES = frozenset({"kid", "pr", "dc"})
LEAST_IMAGES = {
    "fd": 2,
    "kid": 2,
    "is": SPLITS,
    "pr": DENSITY_NEIGHBOURS + 1,
    "dc": DENSITY_NEIGHBOURS + 1,
}
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE, KERNEL_SEED = 100, 1000, 0


@dataclass(frozen=True)
class Scores:
    """Numbers by name, and the metrics that could not be had, with the reason."""

    values: dict[str, float]
    left_out: dict[str, str]


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order of ``METRICS``, each once.

    Raises:
        ValueError: none, or an unknown one; the nearest match is named.
    """
    asked = [names] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in METRICS:
            raise ValueError(unknown("metric", name, METRICS))
    if not asked:
        raise ValueError(f"at least one metric must be named, of {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in asked)


def check_count(metrics: Iterable[str], count: int) -> None:
    """Refuse too few images before the long part.

    Raises:
        EvaluationInputError: the metric that needs more is named.
    """
    for name in metrics:
        least = LEAST_IMAGES[name]
        if count < least:
            raise EvaluationInputError(
                f"metric {name!r} needs at least {least} images (50,000 compare with others' "
                f"numbers), got {count}"
            )


def check_network(network: FeatureNetwork, reference: Reference) -> None:
    """Refuse a reference that was measured with another network.

    Raises:
        EvaluationInputError: both are named.
    """
    if len(reference.mean) != network.num_features:
        raise EvaluationInputError(
            f"the reference ({reference.name}) holds {len(reference.mean)} features an image, but "
            f"the {network.name} network has {network.num_features}: numbers of different networks "
            "do not compare"
        )
    if reference.classifier not in (NOT_STATED, network.fingerprint):
        raise EvaluationInputError(
            f"the reference ({reference.name}) was computed with the network of fingerprint "
            f"{reference.classifier}, but the images would be measured with {network.name}, "
            f"{network.fingerprint}; take a reference of this network: an image archive, or what "
            "make_reference or open_reference made with it"
        )


def missing(
    metrics: Iterable[str], reference: Reference, network: FeatureNetwork
) -> dict[str, str]:
    """The metrics of these that cannot be had, with the reason.

    Raises:
        EvaluationInputError: none of them can.
    """
    asked = list(metrics)
    reasons = {name: why for name in asked if (why := _missing(name, reference, network))}
    if len(reasons) == len(asked):
        said = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise EvaluationInputError(f"none of the metrics asked for can be had. {said}")
    return reasons


def score(
    measured: Measured, reference: Reference, network: FeatureNetwork, metrics: Iterable[str]
) -> Scores:
    """All numbers that were asked for and can be had.

    Args:
        measured: the images, with what the metrics need kept.
        reference: of the same network.
        network: gives the numbers their names.
        metrics: of ``METRICS``.

    Raises:
        EvaluationInputError: none of them can be had.
    """
    asked = check_metrics(metrics)
    values: dict[str, float] = {}
    left_out = missing(asked, reference, network)
    suffix = "" if network.distance == "fid" else f"_{network.distance.removeprefix('fd_')}"
    wanted = [name for name in asked if name not in left_out]
    if "fd" in wanted:
        moments = measured.moments
        values[network.distance] = frechet_distance(
            moments.mean, moments.covariance, reference.mean, reference.covariance
        )
    if "kid" in wanted:
        name = f"kd{suffix}" if suffix else "kid"
        values[name], values[f"{name}_std"] = _kernel(measured, reference)
    if "is" in wanted:
        assert measured.logits is not None
        values[f"is{suffix}"], values[f"is{suffix}_std"] = inception_score(measured.logits)
    if {"pr", "dc"} & set(wanted):
        values |= _manifold(measured, reference, wanted)
    return Scores(values, left_out)


def kernel_subset_size(count: int, reference: Reference) -> int | None:
    """Images a subset of the kernel distance draws: a thousand, or all where there are fewer.

    None where the reference has no feature vectors, or too few, so that there is no such distance.
    """
    there = 0 if reference.features is None else len(reference.features)
    return None if there < LEAST_IMAGES["kid"] else min(KERNEL_SUBSET_SIZE, count, there)


def _missing(name: str, reference: Reference, network: FeatureNetwork) -> str | None:
    """Why a metric cannot be had, if it cannot."""
    if name == "is" and network.num_classes is None:
        return f"the {network.name} network has no classes"
    if name in NEED_FEATURES and reference.features is None:
        return (
            f"the reference ({reference.name}) holds moments only; an image archive or folder as "
            "reference gives its feature vectors"
        )
    if name in NEED_FEATURES and reference.images < LEAST_IMAGES[name]:
        return f"the reference ({reference.name}) has only {reference.images} images"
    return None


def _kernel(measured: Measured, reference: Reference) -> tuple[float, float]:
    assert measured.features is not None and reference.features is not None
    size = kernel_subset_size(measured.moments.count, reference)
    assert size is not None
    return kernel_distance(
        measured.features.to(reference.features.device),
        reference.features,
        subsets=KERNEL_SUBSETS,
        subset_size=size,
        seed=KERNEL_SEED,
    )


def _manifold(measured: Measured, reference: Reference, wanted: list[str]) -> dict[str, float]:
    assert measured.features is not None
    real = reference.manifold
    found = manifold_scores(Manifold.of(measured.features.to(real.features.device)), real)
    values: dict[str, float] = {}
    if "pr" in wanted:
        values |= {"precision": found.precision, "recall": found.recall}
    if "dc" in wanted:
        values |= {"density": found.density, "coverage": found.coverage}
    return values
