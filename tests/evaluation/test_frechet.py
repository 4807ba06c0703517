"""The Frechet distance: exact cases, its symmetries, and two independent implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.evaluation import (
    EvaluationInputError,
    FeatureMoments,
    Reference,
    frechet_distance,
    load_reference,
    save_reference,
)

SEEDS = st.integers(0, 10_000)


def draw(seed: int, count: int, size: int) -> Tensor:
    """Correlated feature vectors (count, size), float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    offset = torch.randn(size, dtype=torch.float64, generator=generator)
    return torch.randn(count, size, dtype=torch.float64, generator=generator) @ mix + offset


def gaussian(seed: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    features = draw(seed, count, size)
    return features.mean(dim=0), torch.cov(features.T).reshape(size, size)


def rotation(seed: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return torch.as_tensor(q)


@given(seed=SEEDS, size=st.integers(1, 12))
def test_diagonal_gaussians_have_a_closed_form(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m1, m2 = torch.randn(2, size, dtype=torch.float64, generator=generator)
    s1, s2 = torch.rand(2, size, dtype=torch.float64, generator=generator)
    exact = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    computed = frechet_distance(m1, s1.square().diag(), m2, s2.square().diag())
    assert computed == pytest.approx(float(exact), rel=1e-12, abs=1e-13)


@given(seed=SEEDS, size=st.integers(1, 12), count=st.integers(3, 40))
def test_it_is_symmetric_and_zero_only_at_itself(seed: int, size: int, count: int) -> None:
    # Fewer vectors than features give singular covariances, as small sets of images do.
    one, two = gaussian(seed, count, size), gaussian(seed + 1, count, size)
    forth = frechet_distance(*one, *two)
    scale = float(one[1].trace() + two[1].trace())
    assert forth == pytest.approx(frechet_distance(*two, *one), rel=1e-7, abs=1e-7 * scale)
    assert forth > 0
    assert frechet_distance(*one, *one) <= 1e-7 * scale


@given(seed=SEEDS, size=st.integers(2, 12), factor=st.floats(0.1, 10))
def test_it_follows_rotation_shift_and_scale(seed: int, size: int, factor: float) -> None:
    (m1, c1), (m2, c2) = gaussian(seed, 50, size), gaussian(seed + 1, 50, size)
    turn = rotation(seed, size)
    shift = torch.arange(size, dtype=torch.float64)

    def moved(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        return factor * (turn @ mean) + shift, factor**2 * turn @ cov @ turn.T

    expected = factor**2 * frechet_distance(m1, c1, m2, c2)
    assert frechet_distance(*moved(m1, c1), *moved(m2, c2)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [3, 64, 256])
def test_it_equals_the_matrix_square_root_of_scipy(size: int) -> None:
    (m1, c1), (m2, c2) = gaussian(1, 4 * size, size), gaussian(2, 4 * size, size)
    root = scipy.linalg.sqrtm((c1 @ c2).numpy())
    expected = np.square((m1 - m2).numpy()).sum() + np.trace((c1 + c2).numpy() - 2 * root.real)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(float(expected), rel=1e-10)


class Flat(torch.nn.Module):
    """Hands torchmetrics' distance the features it is given as images."""

    num_features = 16

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_it_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is a dev extra")
    real, fake = draw(3, 300, 16), draw(4, 200, 16)
    metric = image.FrechetInceptionDistance(Flat(), normalize=True, input_img_size=(1, 4, 4))
    metric.set_dtype(torch.float64)
    metric.update(real.reshape(-1, 1, 4, 4), real=True)
    metric.update(fake.reshape(-1, 1, 4, 4), real=False)
    ours = []
    for features in (real, fake):
        moments = FeatureMoments(16)
        moments.update(features)
        ours += [moments.mean, moments.covariance]
    assert frechet_distance(*ours) == pytest.approx(float(metric.compute()), rel=1e-8)


@given(seed=SEEDS, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_moments_do_not_depend_on_how_the_features_arrive(seed: int, cuts: list[int]) -> None:
    features = draw(seed, 60, 5) + 1e6  # a large mean would ruin sums of squares
    moments = FeatureMoments(5)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        moments.update(features[start:end])  # empty batches are among these
    assert moments.count == 60
    torch.testing.assert_close(moments.mean, features.mean(dim=0), rtol=1e-14, atol=0)
    assert torch.equal(moments.covariance, moments.covariance.T)
    torch.testing.assert_close(moments.covariance, torch.cov(features.T), rtol=1e-7, atol=1e-8)


def test_moments_need_two_vectors_of_the_right_length() -> None:
    moments = FeatureMoments(4)
    moments.update(torch.zeros(1, 4))
    with pytest.raises(EvaluationInputError, match="at least 2 images, got 1"):
        _ = moments.covariance
    with pytest.raises(EvaluationInputError, match=r"\(B, 4\), got \(2, 5\)"):
        moments.update(torch.zeros(2, 5))


def test_shapes_and_values_are_checked() -> None:
    mean, cov = torch.zeros(3), torch.eye(3)
    with pytest.raises(EvaluationInputError, match="expected shapes"):
        frechet_distance(mean, cov, torch.zeros(4), torch.eye(4))
    with pytest.raises(EvaluationInputError, match="expected shapes"):
        frechet_distance(mean[:, None], cov, mean, cov)
    with pytest.raises(EvaluationInputError, match="finite"):
        frechet_distance(mean, cov, mean * torch.nan, cov)


def test_a_reference_survives_its_file(tmp_path: Path) -> None:
    mean, cov = gaussian(5, 20, 4)
    written = Reference(mean, cov, images=20, name="twenty vectors", classifier="abc")
    save_reference(written, tmp_path / "reference.safetensors")
    read = load_reference(tmp_path / "reference.safetensors")
    assert torch.equal(read.mean, mean)
    assert torch.equal(read.covariance, cov)
    assert (read.images, read.name, read.classifier) == (20, "twenty vectors", "abc")


def test_a_missing_or_foreign_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationInputError, match=r"no reference file at .*nowhere"):
        load_reference(tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(EvaluationInputError, match="is not a reference"):
        load_reference(tmp_path / "text.safetensors")
