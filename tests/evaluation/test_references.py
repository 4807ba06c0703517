"""References from every source, and the wrong ones refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deqgen.data import to_uint8, write_image_zip
from deqgen.evaluation import (
    EvaluationInputError,
    load_classifier,
    measure,
    open_reference,
    save_reference,
    save_statistics,
)
from tests.evaluation.patterns import patterns
from tests.evaluation.tiny import TinyFeatures


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "waves.zip"
    write_image_zip(path, to_uint8(patterns(40)).permute(0, 2, 3, 1).numpy(), None)
    return path


def test_images_become_moments_and_feature_vectors(waves: Path) -> None:
    network = TinyFeatures()
    found = open_reference(waves, network, batch_size=16)
    assert found.features is None
    assert (found.name, found.images) == ("waves.zip, 40 images", 40)
    assert (found.classifier, found.split) == ("tiny-8", "not stated")
    whole = measure([patterns(40)], network)
    torch.testing.assert_close(found.covariance, whole.moments.covariance)
    kept = open_reference(waves, network, keep_features=True)
    assert kept.features is not None and kept.features.shape == (40, 8)
    assert kept.manifold is kept.manifold, "radii are measured once"
    assert kept.hash == open_reference(waves, network).hash != found.name
    with pytest.raises(EvaluationInputError, match=r"moments only"):
        _ = found.manifold


def test_files_of_moments(waves: Path, tmp_path: Path) -> None:
    network = TinyFeatures()
    made = open_reference(waves, network)
    save_statistics(made, tmp_path / "own.npz")
    save_reference(made, tmp_path / "own.safetensors")
    for name in ("own.npz", "own.safetensors"):
        found = open_reference(tmp_path / name, network)
        assert found.hash == made.hash and found.name == made.name
    np.savez(tmp_path / "edm.npz", mu=made.mean.numpy(), sigma=made.covariance.numpy())
    edm = open_reference(tmp_path / "edm.npz", network)
    assert (edm.hash, edm.images, edm.classifier) == (made.hash, 0, "not stated")
    assert edm.name == "edm.npz, network not stated"


def test_a_split_that_is_known_is_kept(waves: Path, tmp_path: Path) -> None:
    made = replace(open_reference(waves, TinyFeatures()), split="test, second half")
    save_statistics(made, tmp_path / "own.npz")
    save_reference(made, tmp_path / "own.safetensors")
    for name in ("own.npz", "own.safetensors"):
        assert open_reference(tmp_path / name, TinyFeatures()).split == "test, second half"


EYE = np.eye(8)
BROKEN = [
    (np.array(1.0), EYE, r"shapes are \(\) and \(8, 8\)"),
    (np.zeros(0), np.zeros((0, 0)), r"shapes are \(0,\)"),
    (np.zeros(8), np.zeros(8), r"shapes are \(8,\) and \(8,\)"),
    (np.zeros(8), np.eye(9), r"and \(9, 9\)"),
    (np.full(8, np.nan), EYE, "the mean holds NaN or infinity"),
    (np.zeros(8), EYE + np.inf, "the covariance holds NaN or infinity"),
    (np.zeros(8), EYE.astype(np.complex64), "numbers of type complex64"),
    (np.zeros(8), EYE.astype(bool), "numbers of type bool"),
    (np.zeros(8), np.triu(np.full((8, 8), 0.1)) + EYE, "is not symmetric"),
    (np.zeros(8), EYE - 0.2, "has a negative eigenvalue"),
    (np.zeros(8), -EYE, "has a negative eigenvalue"),
]


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_moments_that_no_gaussian_has_are_refused(tmp_path: Path, case: int) -> None:
    mean, covariance, says = BROKEN[case]
    np.savez(tmp_path / "r.npz", mu=mean, sigma=covariance)
    save_file(
        {"mean": torch.from_numpy(mean), "covariance": torch.from_numpy(covariance)},
        tmp_path / "r.safetensors",
        {"images": "9", "name": "it", "classifier": "tiny-8"},
    )
    for name in ("r.npz", "r.safetensors"):
        with pytest.raises(EvaluationInputError, match=rf"{name} holds no moments.*{says}"):
            open_reference(tmp_path / name, TinyFeatures())


def test_moments_that_rounding_has_bent_are_accepted(tmp_path: Path) -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))  # rank 4 of 8
    for covariance in (torch.cov(rows.T), torch.zeros(8, 8)):
        np.savez(tmp_path / "r.npz", mu=np.zeros(8, np.float32), sigma=covariance.numpy())
        found = open_reference(tmp_path / "r.npz", TinyFeatures())
        assert torch.equal(found.covariance, covariance.double())


def test_the_shipped_one_is_of_the_training_split() -> None:
    found = open_reference("cifar10", load_classifier())
    assert (found.images, found.split) == (50_000, "train")


def test_a_reference_of_another_network_is_refused_by_name(waves: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationInputError, match=r"cifar10.*320 features.*the tiny network has 8"
    ):
        open_reference("cifar10", TinyFeatures())
    save_statistics(open_reference(waves, TinyFeatures(name="other")), tmp_path / "other.npz")
    with pytest.raises(EvaluationInputError, match=r"fingerprint other-8.*with tiny, tiny-8; take"):
        open_reference(tmp_path / "other.npz", TinyFeatures())
    np.savez(tmp_path / "edm.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    with pytest.raises(EvaluationInputError, match=r"edm\.npz.*holds 2048 features.*has 8"):
        open_reference(tmp_path / "edm.npz", TinyFeatures())


def test_sources_that_are_none(waves: Path, tmp_path: Path) -> None:
    network = TinyFeatures()
    for name, says in (
        ("none.npz", "there is no file of statistics"),
        ("none.safetensors", "there is no reference file"),
        ("imagenet", r"unknown reference .*imagenet'\. Available: a \.safetensors.*cifar10\."),
    ):
        with pytest.raises(EvaluationInputError, match=says):
            open_reference(tmp_path / name, network)
    with pytest.raises(EvaluationInputError, match=r"'cifar11'\. Did you mean 'cifar10'\?.*folder"):
        open_reference("cifar11", network)
    (tmp_path / "a.txt").touch()
    with pytest.raises(EvaluationInputError, match=r"a\.txt is no source of images"):
        open_reference(tmp_path / "a.txt", network)
    one = tmp_path / "one.zip"
    write_image_zip(one, to_uint8(patterns(1)).permute(0, 2, 3, 1).numpy(), None)
    with pytest.raises(EvaluationInputError, match=r"at least 2 images, one\.zip holds 1"):
        open_reference(one, network)
    small = tmp_path / "small.zip"
    write_image_zip(small, to_uint8(patterns(2)[..., :16, :16]).permute(0, 2, 3, 1).numpy(), None)
    with pytest.raises(EvaluationInputError, match=r"reference small\.zip cannot be.*16, 16"):
        open_reference(small, load_classifier())
