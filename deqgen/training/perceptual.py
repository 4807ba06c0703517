"""Distances of images as networks trained on images see them: LPIPS and DISTS.

``TrajectoryLoss(distance=PerceptualDistance("lpips", "vgg16-397923af.pth"))`` supervises with one.
Both look through the same VGG16, whose weights have to be given: they are not part of this library.

Not verified: the published weights of VGG16 were not at hand. The formulas are checked on random
ones against torchmetrics, whose heads of both distances are the published ones.

Letters: B images, C channels, H and W pixels, of a stage h and w.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.training.vgg import CHANNELS, SMALLEST, load_vgg16, weights_for
from deqgen_solvers.errors import nearest

# In torchmetrics, which has the heads without needing torchvision for them.
_HEADS = {"lpips": "lpips_models/vgg.pth", "dists": "dists_models/weights.pt"}
_TINY = 1e-8, 1e-12, 1e-6  # LPIPS, pooling and statistics of DISTS: against division by zero

# Pixels in [0, 1] are standardised by these, as when VGG16 was trained. The published LPIPS has
# them rounded, for pixels in [-1, 1].
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LPIPS_MEAN, _LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """How different two images look, as a number that one can descend; 0 for equal images.

    ``"lpips"`` (Zhang et al. 2018, arXiv 1801.03924, equation 1, its VGG): squared differences of
    features of unit length, weighted by channel. ``"dists"`` (Ding et al. 2020, arXiv 2004.07728,
    Section 3): what the means and covariances of features lack to being equal, weighted by channel;
    it forgives texture that is elsewhere.

    Computed in float32, autocast or not, on the device of the images. Frozen: gradients reach the
    first image alone.

    Args:
        name: ``"lpips"`` or ``"dists"``.
        weights: file of a VGG16 trained on ImageNet, with torchvision's names, as
            ``vgg16-397923af.pth``; a state dict by torch.save or safetensors.
        heads: file of what was learnt on top: ``lin0`` to ``lin4`` of LPIPS, ``alpha`` and ``beta``
            of DISTS. By default the one that an installed torchmetrics brings.
        size: side in pixels to which images are brought (bilinear) before they are compared, as
            GET does; None to compare them as they are.

    Raises:
        ValueError: another name, no ``weights``, no ``heads`` and no torchmetrics, a size below 16,
            or a file that is damaged or of something else (:class:`deqgen.models.ModelFileError`).
        FileNotFoundError: there is no such file.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        name: str,
        weights: str | os.PathLike[str] | None,
        heads: str | os.PathLike[str] | None = None,
        *,
        size: int | None = 224,
    ) -> None:
        super().__init__()
        if name not in _HEADS:
            known = ", ".join(_HEADS)
            raise ValueError(f"there is no distance {name!r}: {known}.{nearest(name, _HEADS)}")
        if weights is None:
            raise ValueError(f"{name} needs the weights of VGG16: a path of vgg16-397923af.pth")
        if size is not None and size < SMALLEST:
            raise ValueError(f"size must be at least {SMALLEST}, got {size}")
        self.name = name
        self.size = size
        lpips = name == "lpips"
        self.network = load_vgg16(weights, (lambda: nn.MaxPool2d(2)) if lpips else _HannPool)
        shapes = _lpips_heads() if lpips else _dists_heads()
        learnt = weights_for(shapes, heads_file(name) if heads is None else heads, name)
        for key, tensor in learnt.items():
            self.register_buffer(_buffer(key), tensor)
        mean, std = (_LPIPS_MEAN, _LPIPS_STD) if lpips else (_MEAN, _STD)
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("_std", torch.tensor(std).view(3, 1, 1))
        self._heads = [_buffer(key) for key in shapes]

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of the images of a batch from their targets, a scalar.

        Args:
            image: ``(B, 3, H, W)``, about [-1, 1].
            target: the same shape.

        Raises:
            ValueError: shapes that differ, not three channels, or less than 16 pixels a side.
        """
        return self.against(target)(image)

    def against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """:meth:`forward` for one target and many images: the target is looked at once."""
        self.to(target.device)
        with torch.no_grad():
            wanted = self._look(target)

        def distance(image: Tensor) -> Tensor:
            if image.shape != target.shape:
                raise ValueError(
                    f"image and target differ in shape: {tuple(image.shape)}, {tuple(target.shape)}"
                )
            seen = self._look(image)
            with torch.autocast(image.device.type, enabled=False):
                heads = [self.get_buffer(name) for name in self._heads]
                return (_lpips if self.name == "lpips" else _dists)(seen, wanted, heads).mean()

        return distance

    def _look(self, images: Tensor) -> list[Tensor]:
        """Features ``(B, C, h, w)`` of every stage; for DISTS the pixels are the first."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"{self.name} compares images (B, 3, H, W), got shape {tuple(images.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(self._mean.dtype)  # (B, 3, H, W)
            if self.size is not None and images.shape[2:] != (self.size, self.size):
                images = F.interpolate(images, (self.size, self.size), mode="bilinear")
            if min(images.shape[2:]) < SMALLEST:
                raise ValueError(
                    f"{self.name} needs {SMALLEST} pixels a side, got {tuple(images.shape)}; "
                    "size=224 enlarges the images"
                )
            if self.name == "lpips":
                stages: list[Tensor] = self.network((images - self._mean) / self._std)
                return stages
            images = (images + 1) / 2
            return [images, *self.network((images - self._mean) / self._std)]


def _lpips(seen: Sequence[Tensor], wanted: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """LPIPS of each image, ``(B,)``; arXiv 1801.03924, equation 1."""
    distances = [
        F.conv2d((_unit(ours) - _unit(theirs)).square(), weight).mean((1, 2, 3))  # (B,)
        for ours, theirs, weight in zip(seen, wanted, heads, strict=True)
    ]
    return torch.stack(distances).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Scale the channels of each place to length one.

    Deviation 1: the small number is under the root, as in torchmetrics; added to it, as in the
    published code, it would leave the gradient of a place without any feature undefined.
    """
    length = (features.square().sum(1, keepdim=True) + _TINY[0]).sqrt()  # (B, 1, h, w)
    return features / length


def _dists(seen: Sequence[Tensor], wanted: Sequence[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """DISTS of each image, ``(B,)``; arXiv 2004.07728, Section 3.

    The paper takes weighted similarities from one. What each lacks to one is written out here,
    which is the same by algebra, and keeps the digits that float32 would lose in the difference.
    """
    total = torch.stack([weight.sum() for weight in heads]).sum()
    channels = [features.shape[1] for features in seen]
    alphas, betas = (torch.split((weight / total).flatten(), channels) for weight in heads)
    lacking = []
    for ours, theirs, alpha, beta in zip(seen, wanted, alphas, betas, strict=True):
        a, b = (x.mean((2, 3), keepdim=True) for x in (ours, theirs))  # (B, C, 1, 1)
        left, right = ours - a, theirs - b  # (B, C, h, w)
        spread = left.square().mean((2, 3)) + right.square().mean((2, 3))  # (B, C)
        structure = (left - right).square().mean((2, 3)) / (spread + _TINY[2])  # (B, C)
        texture = (a - b).square() / (a.square() + b.square() + _TINY[2])  # (B, C, 1, 1)
        lacking.append(texture.flatten(1) @ alpha + structure @ beta)  # (B,)
    return torch.stack(lacking).sum(0)


class _HannPool(nn.Module):
    """Root of the blurred square, every second pixel; arXiv 2004.07728, Section 3.

    The blur is a Hann window of five taps, whose outer ones are zero.
    """

    _window: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([0.25, 0.5, 0.25], device="cpu")  # also where the rest is on "meta"
        self.register_buffer("_window", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        channels = hidden.shape[1]
        window = self._window.expand(channels, 1, 3, 3)
        power = F.conv2d(hidden.square(), window, stride=2, padding=1, groups=channels)
        return (power + _TINY[1]).sqrt()  # (B, C, h/2, w/2)


def _lpips_heads() -> dict[str, Tensor]:
    """Names and shapes of the file."""
    return {
        f"lin{stage}.model.1.weight": torch.empty(1, channels, 1, 1, device="meta")
        for stage, channels in enumerate(CHANNELS)
    }


def _dists_heads() -> dict[str, Tensor]:
    shape = (1, 3 + sum(CHANNELS), 1, 1)  # 1475: the pixels are compared too
    return {name: torch.empty(shape, device="meta") for name in ("alpha", "beta")}


def _buffer(key: str) -> str:
    return key.split(".")[0]


def heads_file(name: str) -> Path:
    """The heads of ``name`` in an installed torchmetrics, which need not be imported for that.

    Raises:
        ValueError: there is no torchmetrics that brings them.
    """
    found = importlib.util.find_spec("torchmetrics")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "functional" / "image" / _HEADS[name]
        if path.is_file():
            return path
    raise ValueError(
        f"{name} needs heads, the file of what was learnt on top of VGG16; give its path, or "
        "install the torchmetrics that brings it (pip install 'deqgen[perceptual]')"
    )
