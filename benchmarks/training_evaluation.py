"""An evaluation of 10,000 images beside its feature network alone; the goal is at most 1.05.

"Network alone" has the images in memory. "Evaluation" reads them from an npz as `deqgen sample`
writes it, and reports the Frechet distance and the Inception score. The large network, with random
weights, sees few images: what is done for each is scaled up, what is done once (the square root of
a 2048x2048 matrix) is not.

Letters: N images, F features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import interleaved
from torch import Tensor

from deqgen.data import to_float
from deqgen.data.sample_writers import write_npz
from deqgen.evaluation.features import FeatureNetwork, load_features
from deqgen.evaluation.frechet import Reference, load_reference
from deqgen.evaluation.image_source import open_images
from deqgen.evaluation.inception import InceptionV3
from deqgen.evaluation.measuring import measure
from deqgen.evaluation.metrics import score

COUNT, FEW, BATCH = 10_000, 64, 64
METRICS = ("fd", "is")


def evaluation(rounds: int) -> list[dict[str, Any]]:
    """Measure both networks, with all images and with few."""
    small, large = load_features("cifar10"), InceptionV3().eval()
    return [
        row(small, load_reference(), COUNT, min(rounds, 2)),
        row(large, unknown_reference(large), FEW, min(rounds, 2)),
    ]


def row(network: FeatureNetwork, reference: Reference, seen: int, rounds: int) -> dict[str, Any]:
    """Times for COUNT images, of which ``seen`` are looked at."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (seen, 32, 32, 3), dtype=np.uint8)  # (N, H, W, 3)
    images = to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))  # (N, 3, H, W)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        write_npz(path, [pixels], seen)
        looked: Callable[[], Any] = lambda: measure(read(path, seen), network, keep_logits=True)  # noqa: E731
        measured = looked()
        times = interleaved(
            {
                "network": lambda: alone(network, images),
                "looking": looked,
                "scoring": lambda: score(measured, reference, network, METRICS),
            },
            rounds,
            seconds=60,
        )
    scale = COUNT / seen
    bare, ours = times["network"] * scale, times["looking"] * scale + times["scoring"]
    return {
        "network": network.name,
        "images looked at": seen,
        "network alone, s": bare,
        "evaluation, s": ours,
        "of it scores, s": times["scoring"],
        "ratio": ours / bare,
    }


def alone(network: FeatureNetwork, images: Tensor) -> None:
    """The features of all images, batch by batch."""
    for batch in images.split(BATCH):
        network.measure(batch)


def read(path: Path, count: int) -> Any:
    """Floating-point batches of a file."""
    return (to_float(batch) for batch in open_images(path).batches(BATCH, count))


def unknown_reference(network: FeatureNetwork) -> Reference:
    """A reference of the size that a network needs."""
    size = network.num_features
    spread = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(0)).double()
    covariance = spread @ spread.T / (2 * size)  # (F, F)
    return Reference(
        torch.zeros(size, dtype=torch.float64), covariance, 50_000, "random", network.fingerprint
    )
