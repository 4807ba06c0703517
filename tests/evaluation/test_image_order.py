"""Files that are sorted by class are measured like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deqgen.data import to_uint8, write_image_zip
from deqgen.evaluation import Reference, evaluate_images, evaluate_model, measure
from tests.evaluation.tiny import TinyFeatures, tiny_model


@pytest.mark.filterwarnings("ignore::deqgen.evaluation.FewSamplesWarning")
@pytest.mark.parametrize("classes", [2, 10])
def test_images_sorted_by_class_are_measured_like_any(classes: int, tmp_path: Path) -> None:
    count = 50 * classes
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) / 4
    kinds = torch.rand(classes, 3, 8, 8, generator=torch.Generator().manual_seed(2)) - 0.5
    ordered = (images + 2 * kinds.repeat_interleave(50, 0)).clamp(-1, 1)
    pixels = to_uint8(ordered).permute(0, 2, 3, 1).contiguous().numpy()
    np.savez(tmp_path / "sorted.npz", pixels)
    write_image_zip(tmp_path / "sorted.zip", pixels, None)
    mixed = ordered[torch.randperm(count, generator=torch.Generator().manual_seed(3))]

    class Sharp(TinyFeatures):
        """Sure of what it sees."""

        def measure(self, shown: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            features, _ = super().measure(shown)
            distances = torch.cdist(shown.flatten(1), 2 * kinds.flatten(1))
            return features, -20 * distances

    network = Sharp(classes=classes)
    moments = measure([ordered], network).moments
    held = Reference(moments.mean, moments.covariance, count, "it", network.fingerprint)
    wanted = evaluate_images(mixed, network, held).metrics
    assert wanted["is_tiny"] > 0.8 * classes, "each part of a mixture has all classes"
    for source in (ordered, tmp_path / "sorted.npz", tmp_path / "sorted.zip"):
        found = evaluate_images(source, network, held, batch_size=32)
        assert found.metrics["is_tiny"] == pytest.approx(wanted["is_tiny"], rel=0.05)
        assert found.metrics["fd_tiny"] == pytest.approx(0, abs=1e-5)
        assert found.fingerprint.order == f"permutation of {count}, seed 0"
        part = evaluate_images(source, network, held, count // 2)
        assert part.metrics["is_tiny"] > 0.7 * classes, "not of the first classes alone"
    assert evaluate_model(tiny_model(), network, held_of(network), 10).fingerprint.order is None


def held_of(network: TinyFeatures) -> Reference:
    size = network.num_features
    return Reference(
        torch.zeros(size).double(), torch.eye(size).double(), 9, "it", network.fingerprint
    )
