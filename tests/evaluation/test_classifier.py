"""The shipped classifier: what it is, and that a measurement depends on the image alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deqgen.data.images import ImageZip, to_float, to_uint8
from deqgen.evaluation import (
    CIFAR10_CLASSES,
    CifarClassifier,
    EvaluationInputError,
    class_accuracy,
    fingerprint,
    load_classifier,
    load_reference,
)
from tests.evaluation.patterns import patterns


@pytest.fixture(scope="module")
def classifier() -> CifarClassifier:
    return load_classifier()


def test_the_asset_is_small_and_in_half_precision() -> None:
    asset = Path(str(files("deqgen") / "assets" / "cifar10_classifier.safetensors"))
    assert asset.stat().st_size < 6e6
    assert {value.dtype for value in load_file(asset).values()} == {torch.float16}
    assert asset.with_suffix(".md").is_file(), "weights are shipped with a model card"


def test_it_has_the_documented_size(classifier: CifarClassifier) -> None:
    assert sum(p.numel() for p in classifier.parameters()) == 2_452_906
    assert classifier.num_features == 320
    assert classifier.num_classes == len(CIFAR10_CLASSES) == 10
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


def test_the_reference_belongs_to_it(classifier: CifarClassifier) -> None:
    reference = load_reference()
    assert reference.classifier == fingerprint(classifier)
    assert reference.images == 50_000
    assert reference.mean.shape == (320,)
    # The scale that makes distances readable: real images have a total variance of about 100.
    assert float(reference.covariance.trace()) == pytest.approx(100, rel=2e-2)
    assert torch.equal(reference.covariance, reference.covariance.T)


def test_it_recognises_real_test_images(classifier: CifarClassifier, shared: Path) -> None:
    data = ImageZip(shared / "cifar10-32x32-jpeg-test.zip")
    logits = classifier.logits(to_float(data.images[:600]))
    assert class_accuracy(logits, data.labels[:600]) > 0.9


def test_features_and_logits_are_the_two_halves_of_measure(classifier: CifarClassifier) -> None:
    images = patterns(4)
    features, logits = classifier.measure(images)
    assert features.shape == (4, 320)
    assert logits.shape == (4, 10)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(classifier.features(images), features)
    assert torch.equal(classifier.logits(images), logits)


def test_storage_does_not_matter(classifier: CifarClassifier) -> None:
    exact = to_float(to_uint8(patterns(6)))
    expected = classifier.features(exact)
    assert torch.equal(classifier.features(exact.double()), expected)
    assert torch.equal(classifier.features(exact.half()), expected)
    within_a_level = exact + 0.4 / 127.5 * torch.sign(patterns(6, start=90))
    assert torch.equal(classifier.features(within_a_level), expected)
    strided = exact.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(classifier.features(strided), expected)


def test_values_outside_the_range_are_clamped(classifier: CifarClassifier) -> None:
    loud = 1.5 * patterns(3)
    assert torch.equal(classifier.features(loud), classifier.features(loud.clamp(-1, 1)))


def test_the_batch_does_not_matter_beyond_rounding(classifier: CifarClassifier) -> None:
    images = patterns(9)
    together = classifier.features(images)
    alone = torch.cat([classifier.features(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert classifier.features(images[:0]).shape == (0, 320)


def test_autocast_and_gradients_do_not_matter(classifier: CifarClassifier) -> None:
    images = patterns(3)
    expected = classifier.features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier.features(images), expected)
    measured = classifier.features(images.requires_grad_())
    assert torch.equal(measured, expected)
    assert not measured.requires_grad


def test_the_bare_network_is_differentiable(classifier: CifarClassifier) -> None:
    images = patterns(2).requires_grad_()
    features, logits = classifier(images)
    (gradient,) = torch.autograd.grad(features.sum() + logits.sum(), images)
    assert float(gradient.abs().sum()) > 0


def test_the_first_layer_whitens_patches() -> None:
    model = CifarClassifier()
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[1.0, 0.2, 0.1], [0.0, 0.7, 0.3], [0.0, 0.0, 0.5]])
    noise = torch.randn(200, 3, 32, 32, generator=generator)
    images = torch.einsum("dc,bchw->bdhw", mix, noise)
    model.set_whitening(images, ridge=0.0)
    responses = model.whiten(images)[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(responses), torch.eye(12), rtol=0, atol=1e-3)
    assert torch.equal(model.whiten.weight[12:], -model.whiten.weight[:12])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 64, 64), r"\(B, 3, 32, 32\).*got \(2, 3, 64, 64\)"),
        (torch.zeros(2, 1, 32, 32), r"got \(2, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "floating point.*torch.uint8.*to_float"),
        ([[0.0]], "torch.Tensor, got list"),
    ],
)
def test_other_images_get_one_sentence(
    classifier: CifarClassifier, images: torch.Tensor, message: str
) -> None:
    with pytest.raises(EvaluationInputError, match=message):
        classifier.features(images)


def test_images_that_are_not_finite_are_named(classifier: CifarClassifier) -> None:
    images = patterns(5)
    images[2, 0, 3, 3] = torch.nan
    images[4, 1, 0, 0] = torch.inf
    with pytest.raises(EvaluationInputError, match=r"2 of 5 .*the first is number 2"):
        classifier.features(images)


def test_a_network_in_training_mode_does_not_measure() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        CifarClassifier().train().features(patterns(2))


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationInputError, match=r"no classifier file at .*nowhere"):
        load_classifier(tmp_path / "nowhere.safetensors")
    reference = files("deqgen") / "assets" / "cifar10_reference.safetensors"
    with pytest.raises(EvaluationInputError, match="is not a CifarClassifier"):
        load_classifier(str(reference))
