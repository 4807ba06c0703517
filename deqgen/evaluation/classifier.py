"""The network that looks at samples: a small CIFAR-10 classifier, shipped with the package.

Shape letters: B images, C channels, H and W sides, F features (320), K classes (10).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deqgen.data.images import to_float, to_uint8
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.frechet import fingerprint
from deqgen.evaluation.pixels import check_pixels, exact_float32

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Names of the ten classes, in the order of their labels."""
IMAGE_SHAPE = (3, 32, 32)


class ConvPair(nn.Module):
    """Two 3x3 convolutions with batch norm and SiLU; the sides are halved after the first."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        for conv in (self.conv1, self.conv2):
            # The first channels start as copies of the input: a short schedule needs no detour.
            nn.init.dirac_(conv.weight[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:  # (B, Cin, H, W)
        x = nn.functional.max_pool2d(self.conv1(x), 2)  # (B, Cout, H/2, W/2)
        x = nn.functional.silu(self.norm1(x))  # (B, Cout, H/2, W/2)
        x = nn.functional.silu(self.norm2(self.conv2(x)))  # (B, Cout, H/2, W/2)
        return x


class CifarClassifier(nn.Module):
    """A seven-layer convolutional classifier of 32x32 colour images, 2.5 million parameters.

    A fixed layer whitens 2x2 patches, three pairs of convolutions follow, and the mean over the
    last 3x3 map is the feature vector. The layout is in the spirit of the fast CIFAR-10 recipes
    (Jordan, "94% on CIFAR-10 in 3.29 seconds", arXiv 2404.00498), written and trained here.

    ``forward`` is the bare differentiable network, for training. To measure images use
    :meth:`features`, :meth:`logits` or :meth:`measure`, which check them, round them to the 256
    levels a saved file has, and compute in float32 whatever autocast says, so that a number does
    not depend on how the images were stored or batched (beyond rounding).

    Args:
        widths: channels of the three pairs of convolutions; the last is the number of features.
        num_classes: number of classes.
    """

    name = "cifar10"
    distance = "fd_cifar10"
    feature_scale: Tensor

    def __init__(
        self, widths: tuple[int, int, int] = (64, 256, 320), num_classes: int = 10
    ) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2, bias=False)
        self.whiten.weight.requires_grad_(False)
        channels = (24, *widths)
        self.pairs = nn.Sequential(*(ConvPair(channels[i], channels[i + 1]) for i in range(3)))
        self.head = nn.Linear(widths[-1], num_classes)
        self.register_buffer("feature_scale", torch.ones(()))

    @property
    def num_features(self) -> int:
        """Length F of a feature vector."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """Number K of classes."""
        return self.head.out_features

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights; a reference is held against it."""
        return fingerprint(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, 3, 32, 32) in [-1, 1]
        x = nn.functional.silu(self.whiten(x))  # (B, 24, 31, 31)
        x = self.pairs(x)  # (B, F, 3, 3)
        pooled = x.mean(dim=(2, 3))  # (B, F)
        return pooled * self.feature_scale, self.head(pooled)  # (B, F), (B, K)

    @torch.no_grad()
    def set_whitening(self, images: Tensor, ridge: float = 0.02) -> None:
        """Set the fixed first layer from images (B, 3, H, W) in [-1, 1].

        Its 24 filters are the 12 principal directions of all 2x2 patches, each divided by
        ``sqrt(variance + ridge)``, and their negatives, so that the activation after it loses
        neither sign. The ridge keeps directions that hold little but noise small.
        """
        patches = nn.functional.unfold(images, 2).double()  # (B, 12, L)
        patches = patches.transpose(1, 2).reshape(-1, 12)  # (B * L, 12)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))  # (12,), (12, 12)
        directions = (vectors / (values + ridge).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([directions, -directions]))

    def features(self, images: Tensor) -> Tensor:
        """Feature vectors (B, F), float32, of images (B, 3, 32, 32) in [-1, 1]; no gradient."""
        return self.measure(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """Class scores (B, K) before the softmax, of images (B, 3, 32, 32); no gradient."""
        return self.measure(images)[1]

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, K) in one pass.

        Args:
            images: (B, 3, 32, 32), floating point in [-1, 1]. Values outside are clamped, then all
                are rounded to 256 levels, as a PNG would.

        Raises:
            EvaluationInputError: another shape or kind of number, or a value that is not finite.
        """
        check_images(images)
        if self.training:
            raise RuntimeError(
                "call classifier.eval() before measuring: batch norm would mix images"
            )
        weight = self.head.weight
        with torch.no_grad(), exact_float32(weight.device.type):
            rounded = to_float(to_uint8(images.to(weight.device)))
            rounded = rounded.contiguous(memory_format=torch.channels_last)  # faster on CPUs
            features, logits = self(rounded)
        return features, logits


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of finite CIFAR-10 sized images, in one sentence."""
    check_pixels(
        images, IMAGE_SHAPE[1], ", because the features are those of a CIFAR-10 classifier"
    )


def load_classifier(path: str | Path | None = None) -> CifarClassifier:
    """The shipped classifier, or one that ``examples/train_classifier.py`` wrote, ready to use.

    Args:
        path: a safetensors file; None is the embedded one. Half-precision weights are widened to
            float32.

    Raises:
        EvaluationInputError: there is no such file, or its tensors are not this network's.
    """
    if path is None:
        with as_file(files("deqgen") / "assets" / "cifar10_classifier.safetensors") as embedded:
            return load_classifier(embedded)
    if not Path(path).is_file():
        raise EvaluationInputError(f"there is no classifier file at {path}")
    try:
        weights = {name: value.float() for name, value in load_file(str(path)).items()}
        classifier = CifarClassifier(_widths(weights))
        classifier.load_state_dict(weights, strict=True)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise EvaluationInputError(f"{path} is not a CifarClassifier: {error}") from None
    return classifier.eval().requires_grad_(False)


def _widths(weights: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Channels of the three pairs, read off a network's tensors."""
    first, second, third = (len(weights[f"pairs.{i}.conv2.weight"]) for i in range(3))
    return first, second, third
