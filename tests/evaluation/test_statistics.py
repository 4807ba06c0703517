"""Statistics of image archives: exact, streamed, in EDM's format, honest about their features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deqgen.data import ImageZip, ImageZipError, to_float, to_uint8, write_image_zip
from deqgen.evaluation import (
    EvaluationInputError,
    archive_reference,
    box_to_32,
    evaluate,
    fingerprint,
    load_archive_reference,
    load_classifier,
    load_statistics,
    make_reference,
    save_statistics,
)
from tests.evaluation.patterns import patterns
from tests.evaluation.tiny import TinyFeatures


def archive(path: Path, images: Tensor) -> Path:
    pixels = to_uint8(images).permute(0, 2, 3, 1).contiguous().numpy()
    write_image_zip(path, pixels, None)
    return path


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("zip") / "waves.zip", patterns(40))


def test_the_moments_are_those_of_the_images_at_once(waves: Path) -> None:
    found = archive_reference(waves, batch_size=7)
    wanted = make_reference(to_float(ImageZip(waves).images), "waves", batch_size=40)
    torch.testing.assert_close(found.mean, wanted.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.covariance, wanted.covariance, rtol=0, atol=1e-4)
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    assert (found.name, found.images) == ("waves, 40 images", 40)
    assert found.classifier == fingerprint(load_classifier())
    assert evaluate(patterns(40), reference=found).fd_cifar10 < 1e-3


def test_the_file_is_that_of_edm_and_reads_back_exactly(waves: Path, tmp_path: Path) -> None:
    reference = archive_reference(waves)
    for name in ("a.npz", "b.npz"):
        save_statistics(reference, tmp_path / "new" / name)
    with np.load(tmp_path / "new" / "a.npz") as stored:
        assert np.array_equal(stored["mu"], reference.mean.numpy())
        assert np.array_equal(stored["sigma"], reference.covariance.numpy())
        assert stored["mu"].dtype == stored["sigma"].dtype == np.float64
    assert (tmp_path / "new/a.npz").read_bytes() == (tmp_path / "new/b.npz").read_bytes()
    for read in (load_statistics, load_archive_reference):
        again = read(tmp_path / "new" / "a.npz")
        assert torch.equal(again.mean, reference.mean)
        assert torch.equal(again.covariance, reference.covariance)
        assert (again.images, again.name) == (40, "waves, 40 images")
    assert torch.equal(load_archive_reference(waves).mean, reference.mean)


def test_larger_images_are_averaged_and_it_says_so(waves: Path, tmp_path: Path) -> None:
    large = patterns(40).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    found = archive_reference(archive(tmp_path / "large.zip", large))
    assert found.name == "large, 40 images of 64x64 averaged to 32x32"
    torch.testing.assert_close(found.mean, archive_reference(waves).mean, rtol=0, atol=1e-5)


def test_another_network_sees_the_images_as_they_are(waves: Path, tmp_path: Path) -> None:
    network = TinyFeatures()
    found = archive_reference(waves, classifier=network, batch_size=16)
    assert (found.name, found.classifier) == ("waves, 40 images", "tiny-8")
    torch.testing.assert_close(found.mean, network.measure(patterns(40))[0].mean(dim=0).double())
    small = archive(tmp_path / "small.zip", patterns(9)[:, :, :24, :24])
    assert archive_reference(small, classifier=network).images == 9


def test_the_box_is_a_mean_over_blocks_of_what_a_file_would_hold() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    kept = to_float(to_uint8(images))
    wanted = kept.reshape(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    torch.testing.assert_close(box_to_32(images), wanted)
    assert torch.equal(box_to_32(kept[:, :, :32, :32]), kept[:, :, :32, :32])


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 32, 32), (1, 3, 48, 48), (1, 3, 64, 32)])
def test_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EvaluationInputError, match=r"S a multiple of 32.*32x32 images; got"):
        box_to_32(torch.zeros(shape))


def test_archives_that_cannot_be_measured(waves: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageZipError, match="there is no image archive"):
        archive_reference(tmp_path / "none.zip")
    with pytest.raises(EvaluationInputError, match=r"small\.zip cannot be measured: .*16, 16"):
        archive_reference(archive(tmp_path / "small.zip", patterns(2)[:, :, :16, :16]))
    with pytest.raises(EvaluationInputError, match="at least 2 images, got 1"):
        save_statistics(archive_reference(archive(tmp_path / "one.zip", patterns(1))), "a.npz")


def test_files_that_are_no_statistics(waves: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match=r"are a \.npz file, got '.*a\.npy'"):
        save_statistics(archive_reference(waves), tmp_path / "a.npy")
    with pytest.raises(EvaluationInputError, match="there is no file of statistics"):
        load_statistics(path)
    np.savez(path, mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))
    with pytest.raises(EvaluationInputError, match="which network its 2048 features are of"):
        load_statistics(path)
    np.savez(path, nothing=np.zeros(1))
    with pytest.raises(EvaluationInputError, match=r"a\.npz is no file of statistics"):
        load_statistics(path)
    np.savez(path, mu=np.array([{}], dtype=object), classifier=np.array("x"))  # a pickle inside
    with pytest.raises(EvaluationInputError, match=r"a\.npz is no file of statistics"):
        load_statistics(path)
    for content in (b"", b"hello", b"PK\x03\x04 and then nothing"):
        path.write_bytes(content)
        with pytest.raises(EvaluationInputError, match=r"a\.npz is no file of statistics"):
            load_statistics(path)


def test_the_development_images_of_64x64(shared: Path) -> None:
    found = archive_reference(shared / "imagenet-64x64-sample1000.zip", batch_size=250)
    assert found.images == 1000
    assert float(found.covariance.trace()) > 10
    assert found.name.endswith("1000 images of 64x64 averaged to 32x32")
