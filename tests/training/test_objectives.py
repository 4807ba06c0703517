"""What the objectives hand to a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deqgen.data import PairDataset, write_pairs
from deqgen.training import Denoising, Distillation


class Brighten:
    """A teacher whose image is a function of noise and label that a test can repeat."""

    nfe, image_shape, num_classes = 1, (1, 4, 4), 3

    def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        shift = 0.0 if label is None else 0.1 * label[:, None, None, None]
        return noise.tanh() * 0.5 + shift

    def describe(self) -> dict[str, Any]:
        return {"name": "brighten", "nfe": 1, "num_classes": self.num_classes}


class Student(nn.Module):
    """Returns one number a sample, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None, float]] = []

    def forward(
        self, noise: Tensor, label: Tensor | None, *, generator: torch.Generator
    ) -> SimpleNamespace:
        self.seen.append((noise, label, float(torch.rand((), generator=generator))))
        return SimpleNamespace(images=(torch.zeros_like(noise),))


@pytest.fixture
def pairs(tmp_path: Path) -> PairDataset:
    write_pairs(Brighten(), tmp_path, count=9)
    return PairDataset(tmp_path)


def test_distillation_pairs_noise_label_and_target(pairs: PairDataset) -> None:
    student, indices = Student(), np.array([4, 0, 7])
    loss = Distillation(pairs).loss(student, indices, torch.Generator().manual_seed(0))
    noise, label, _ = student.seen[0]
    assert label is not None and label.tolist() == [1, 0, 1]
    expected = Brighten().sample(noise, label).abs().mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1 / 255)


def test_z0_is_drawn_anew_and_labels_can_be_withheld(pairs: PairDataset) -> None:
    student, generator = Student(), torch.Generator().manual_seed(0)
    objective = Distillation(pairs, conditional=False)
    for _ in range(2):
        objective.loss(student, np.array([1]), generator)
    (_, first_label, first), (_, _, second) = student.seen
    assert first_label is None
    assert first != second


def test_pairs_without_labels_cannot_be_conditional(tmp_path: Path) -> None:
    teacher = Brighten()
    teacher.num_classes = 0
    write_pairs(teacher, tmp_path, count=4)
    with pytest.raises(ValueError, match="have no labels"):
        Distillation(PairDataset(tmp_path))


def test_denoising_mirrors_half_of_the_images() -> None:
    images = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    images[..., 1] = 255  # dark left, bright right
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            seen.append(x[sigma < 0.3])
            return x

    model, generator = Watch(), torch.Generator().manual_seed(0)
    for flip in (True, False):
        objective = Denoising(images, torch.zeros(400, dtype=torch.int64), num_classes=1, flip=flip)
        objective.loss(model, np.arange(400), generator)
    left_bright = [float((x[..., 0] > x[..., 1]).float().mean()) for x in seen]
    assert 0.4 < left_bright[0] < 0.6
    assert left_bright[1] == 0


def test_labels_that_do_not_fit_are_refused() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got 0\.\.10"):
        Denoising(images, torch.tensor([0, 10]), num_classes=10)
    with pytest.raises(ValueError, match="2 images need as many labels"):
        Denoising(images, torch.tensor([0]), num_classes=10)
