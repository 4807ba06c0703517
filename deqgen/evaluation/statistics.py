"""Reference statistics of an image archive, in EDM's file format.

Letters: N images, B images of a batch, C channels, H and W sides, F features.

The features are those of any network; by default of the shipped CIFAR-10 classifier, which sees
32x32 pixels. For it larger images are first averaged down to that size (:func:`box_to_32`); the
distance is then called ``fd_box32``. It sees composition and colour and no fine detail, and it is
**not FID**.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from deqgen.atomic import replacing
from deqgen.data.images import count_image_zip, iterate_image_zip, to_float, to_uint8
from deqgen.evaluation.classifier import IMAGE_SHAPE, CifarClassifier, load_classifier
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.features import FeatureNetwork
from deqgen.evaluation.frechet import NOT_STATED, Reference
from deqgen.evaluation.measuring import measure
from deqgen.evaluation.moments_check import checked_moments

SIDE = IMAGE_SHAPE[1]

# What NumPy may raise of a file that is damaged or something else.
_UNREADABLE = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
)


def box_to_32(images: Tensor) -> Tensor:
    """Average square blocks of pixels, so that the CIFAR-10 classifier can look at the images.

    Args:
        images: ``(N, 3, H, W)`` with ``H = W`` a multiple of 32, floating point in [-1, 1]. They
            are clamped and rounded to 256 levels first, as a saved PNG would be.

    Returns:
        ``(N, 3, 32, 32)`` float32 in [-1, 1].

    Raises:
        EvaluationInputError: another shape.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] % SIDE or not shape[2]:
        raise EvaluationInputError(
            "images must be (N, 3, S, S) with S a multiple of 32, because the features are those "
            f"of a classifier of 32x32 images; got {shape}"
        )
    return torch.nn.functional.avg_pool2d(to_float(to_uint8(images)), shape[2] // SIDE)


def archive_reference(
    path: str | Path,
    *,
    batch_size: int = 256,
    classifier: FeatureNetwork | None = None,
    progress: bool = False,
) -> Reference:
    """Moments of the images in an EDM-style zip, read batch by batch and summed in float64.

    Args:
        path: see :class:`deqgen.data.ImageZip`. For the CIFAR-10 classifier: images of 32x32, or of
            a multiple of it, which are averaged down by :func:`box_to_32`.
        batch_size: images a forward pass; changes the result only by rounding.
        classifier: the feature network; None is the shipped one, on a GPU if there is one.
        progress: show a progress bar on a terminal.

    Raises:
        ImageZipError: the archive is missing or damaged.
        EvaluationInputError: images of another size, or fewer than two.
    """
    path = Path(path)
    if classifier is None:
        classifier = load_classifier().to("cuda" if torch.cuda.is_available() else "cpu")
    sides: set[int] = set()

    def batches() -> Iterator[Tensor]:
        disable = None if progress else True
        with tqdm(total=count_image_zip(path), unit="image", disable=disable) as bar:
            for images, _ in iterate_image_zip(path, batch_size=batch_size):
                sides.add(images.shape[-1])
                shown = to_float(images)  # (B, 3, H, W)
                yield box_to_32(shown) if isinstance(classifier, CifarClassifier) else shown
                bar.update(len(images))

    try:
        moments = measure(batches(), classifier).moments
    except EvaluationInputError as error:
        raise EvaluationInputError(f"{path} cannot be measured: {error}") from None
    averaged = ""
    if isinstance(classifier, CifarClassifier) and (side := sides.pop()) != SIDE:
        averaged = f" of {side}x{side} averaged to {SIDE}x{SIDE}"
    return Reference(
        mean=moments.mean,
        covariance=moments.covariance,
        images=moments.count,
        name=f"{path.stem}, {moments.count} images{averaged}",
        classifier=classifier.fingerprint,
    )


def save_statistics(reference: Reference, path: str | Path) -> None:
    """Write moments as an ``.npz`` with EDM's keys ``mu`` (F,) and ``sigma`` (F, F), float64.

    Beside them stand ``images``, ``name``, ``classifier`` and ``split``, so that they are never
    taken for the statistics of Inception features, which have the same two keys.

    Args:
        reference: of :func:`archive_reference` or :func:`deqgen.evaluation.make_reference`.
        path: a ``.npz`` file, replaced whole; its folder is made.

    Raises:
        ValueError: another ending of the name.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"statistics are a .npz file, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            mu=reference.mean.numpy(),
            sigma=reference.covariance.numpy(),
            images=np.array(reference.images),
            name=np.array(reference.name),
            classifier=np.array(reference.classifier),
            split=np.array(reference.split),
        )


def load_statistics(path: str | Path, *, unstated: bool = False) -> Reference:
    """Read what :func:`save_statistics` wrote, exactly.

    Args:
        path: a ``.npz``.
        unstated: accept EDM's own files too, which hold ``mu`` and ``sigma`` alone (of Inception
            features) and say neither the network nor the number of images.

    Raises:
        EvaluationInputError: no such file, not such a file, moments that no Gaussian has, or EDM's
            own where it is not asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationInputError(f"there is no file of statistics at {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            silent = "classifier" not in stored and "mu" in stored
            if silent and not unstated:
                raise EvaluationInputError(
                    f"{path} does not say which network its {stored['mu'].size} features are of; "
                    "statistics to compare with here are written by deqgen data stats"
                )
            mean, covariance = checked_moments(
                torch.from_numpy(stored["mu"]), torch.from_numpy(stored["sigma"]), path
            )
            return Reference(
                mean=mean,
                covariance=covariance,
                images=0 if silent else int(stored["images"]),
                name=f"{path.name}, network not stated" if silent else str(stored["name"]),
                classifier=NOT_STATED if silent else str(stored["classifier"]),
                split=str(stored["split"]) if "split" in stored else NOT_STATED,
            )
    except EvaluationInputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise EvaluationInputError(f"{path} is no file of statistics: {reason}") from None


def load_archive_reference(path: str | Path, *, progress: bool = False) -> Reference:
    """Statistics from a ``.npz``, or computed from an image archive, whichever ``path`` is.

    Raises:
        ImageZipError: an archive that is missing or damaged.
        EvaluationInputError: as :func:`load_statistics` and :func:`archive_reference`.
    """
    if Path(path).suffix == ".npz":
        return load_statistics(path)
    return archive_reference(path, progress=progress)
