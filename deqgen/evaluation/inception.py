"""The network of FID: Inception v3 (Szegedy et al. 2015, arXiv 1512.00567), as of 2015-12-05.

FID, KID and the Inception score are defined by one file, TensorFlow's ``inception-2015-12-05``,
and not by the paper's network alone. It departs from the paper and from later releases in ways
that move the scores:

1. Average pools inside the blocks do not count the padding (:mod:`.inception_blocks`).
2. The pool inside the last block takes the maximum, where all others average (there, too).
3. The classifier has 1008 outputs, and the Inception score is computed without their biases.
4. Images of any size become 299x299 by TensorFlow 1's bilinear resize
   (:func:`tensorflow_resize`), and bytes become ``(x - 128) / 128``.

Names are those of the published state dict, ``pt_inception-2015-12-05-6726825d.pth``.

Letters: B images, C channels, H and W sides, F features (2048), K classes (1008).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deqgen.evaluation.frechet import fingerprint
from deqgen.evaluation.inception_blocks import Conv, MixedA, MixedB, MixedC, MixedD, MixedE, halve
from deqgen.evaluation.pixels import AT_ONCE, exact_float32, quantised

SIDE = 299


def tensorflow_resize(images: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear resize as TensorFlow 1 did it, and FID with it.

    Output pixel i is read at position ``i * H / side`` of the input: corner on corner, where
    today's resizes put centre on centre, so that the picture moves a little up and to the left.
    Nothing is averaged when it shrinks. ``torch.nn.functional.interpolate`` has no mode for this.

    Args:
        images: (B, C, H, W), floating point.
        side: of the result.

    Returns:
        (B, C, side, side), of the same type.
    """
    height, width = images.shape[2:]
    low, high, share = _positions(width, side, images)
    left, right = images[..., low], images[..., high]  # (B, C, H, side)
    rows = left + (right - left) * share  # (B, C, H, side)
    low, high, share = _positions(height, side, images)
    top, bottom = rows[:, :, low], rows[:, :, high]  # (B, C, side, side)
    return top + (bottom - top) * share[:, None]


def _positions(size: int, side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each output pixel lies between, and its share of the second."""
    # In float32, as TensorFlow: a position just below a whole number belongs to the pixel before.
    scale = torch.tensor(size, dtype=torch.float32) / side
    place = torch.arange(side, dtype=torch.float32) * scale
    low = place.long()
    share = (place - low).to(like)
    high = (low + 1).clamp_max(size - 1)
    return low.to(like.device), high.to(like.device), share


class InceptionV3(nn.Module):
    """The network of FID; 23,850,960 parameters, of them 21,785,568 for the features.

    :meth:`measure` is what metrics call. ``forward`` is the bare network. Weights come from
    :func:`deqgen.evaluation.load_features`; without them, features mean nothing.
    """

    name = "inception"
    distance = "fid"
    num_features = 2048
    num_classes = 1008

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, valid=True)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280)
        self.Mixed_7c = MixedE(2048, last=True)
        self.fc = nn.Linear(self.num_features, self.num_classes)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights; a reference is held against it."""
        return fingerprint(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, 3, 299, 299) in [-1, 1)
        x = self.Conv2d_1a_3x3(x)  # (B, 32, 149, 149)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x))  # (B, 64, 147, 147)
        x = self.Conv2d_3b_1x1(halve(x))  # (B, 80, 73, 73)
        x = halve(self.Conv2d_4a_3x3(x))  # (B, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(x))  # (B, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, F, 8, 8)
        features = x.mean(dim=(2, 3))  # (B, F)
        return features, functional.linear(features, self.fc.weight)  # (B, F), (B, K): deviation 3

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits without biases (B, K), in one pass; no gradient.

        Args:
            images: (B, 3, H, W), floating point in [-1, 1]. Values outside are clamped, then all
                are rounded to 256 levels, as a PNG would, and resized to 299x299.

        Raises:
            EvaluationInputError: another shape or kind of number, or a value that is not finite.
        """
        device = self.fc.weight.device
        levels = quantised(images, device)
        with torch.no_grad(), exact_float32(device.type):
            parts = [self(self._scaled(part)) for part in torch.split(levels, AT_ONCE)]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(logits)

    @staticmethod
    def _scaled(levels: Tensor) -> Tensor:
        """Bytes (B, 3, H, W) as the network takes them, (B, 3, 299, 299)."""
        resized = tensorflow_resize(levels.float())  # deviation 4
        resized = resized.contiguous(memory_format=torch.channels_last)
        return resized.sub_(128).div_(128)
