"""A reference from whatever holds one: the shipped one, statistics in a file, or images.

Letters: N images, B images of a batch, C channels, H and W sides, F features.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from deqgen.data.images import to_float
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.features import FeatureNetwork
from deqgen.evaluation.frechet import NOT_STATED, Reference, load_reference
from deqgen.evaluation.image_source import ImageSource, is_images, open_images
from deqgen.evaluation.measuring import measure
from deqgen.evaluation.metrics import check_network
from deqgen.evaluation.statistics import load_statistics
from deqgen.teachers.names import unknown

EMBEDDED = "cifar10"
_SOURCES = (
    EMBEDDED,
    "an .npz with mu and sigma or with images in arr_0",
    "a .safetensors of save_reference",
    "an image archive (.zip)",
    "a folder of images",
)


def open_reference(
    source: str | Path,
    network: FeatureNetwork,
    *,
    keep_features: bool = False,
    batch_size: int = 256,
    progress: bool = False,
) -> Reference:
    """What images are to be compared with, measured with ``network``.

    Args:
        source: ``"cifar10"``, the shipped moments of CIFAR-10's 50,000 training images; a ``.npz``
            of ``deqgen data stats``, or of EDM (``mu``, ``sigma``), whose network and split are
            not stated; a ``.safetensors`` of :func:`save_reference`; or images, which are measured
            now: an EDM-style zip, a folder, or a ``.npz`` with ``arr_0``.
        network: the one that the images will be measured with.
        keep_features: keep the feature vectors of images, 4 N F bytes where the network is. The
            kernel distance, precision and the like need them.
        batch_size: images at a time.
        progress: show a progress bar.

    Raises:
        EvaluationInputError: nothing there (the nearest match is named), an unreadable file,
            moments that no Gaussian has, a reference of another network, or images that the
            network refuses.
        ImageZipError: a damaged archive.
    """
    path = Path(source)
    if str(source) == EMBEDDED:
        reference = load_reference()
    elif path.suffix == ".safetensors":
        reference = load_reference(path)
    elif path.suffix == ".npz" and not is_images(path):
        reference = load_statistics(path, unstated=True)
    elif not path.exists() and path.suffix not in (".npz", ".zip"):
        raise EvaluationInputError(unknown("reference", str(source), _SOURCES))
    else:
        return _measured(open_images(path), network, keep_features, batch_size, progress)
    check_network(network, reference)
    return reference


def _measured(
    images: ImageSource, network: FeatureNetwork, keep: bool, batch_size: int, progress: bool
) -> Reference:
    if images.count < 2:
        raise EvaluationInputError(
            f"a reference needs at least 2 images, {images.name} holds {images.count}"
        )
    with tqdm(
        total=images.count, unit="image", desc="reference", disable=None if progress else True
    ) as bar:
        batches = (
            (bar.update(len(b)), to_float(b))[1] for b in images.batches(batch_size, images.count)
        )
        try:
            measured = measure(batches, network, keep_features=keep)
        except EvaluationInputError as error:
            raise EvaluationInputError(
                f"the reference {images.name} cannot be measured: {error}"
            ) from None
    features = measured.features
    if features is not None and measured.moments.device.type != "cpu":
        features = features.to(measured.moments.device)
    return Reference(
        mean=measured.moments.mean,
        covariance=measured.moments.covariance,
        images=measured.moments.count,
        name=f"{images.name}, {measured.moments.count} images",
        classifier=network.fingerprint,
        split=NOT_STATED,
        features=features,
    )
