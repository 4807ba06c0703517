"""Halve or double the side of a feature map through a fixed low-pass filter.

The filter is the outer product of a few taps with themselves, normalised to sum 1: ``(1, 1)`` is
the mean of 2x2 pixels (or, doubling, repetition), ``(1, 3, 3, 1)`` the smoother one of NCSN++
(arXiv 2011.13456, appendix H, after StyleGAN2, arXiv 1912.04958). State dicts hold it under the
name ``resample_filter``.

Letters: B samples, C channels in, D channels out, R side of the map, T taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def low_pass(taps: Sequence[float]) -> Tensor:
    """The two-dimensional filter of T taps, ``(1, 1, T, T)`` float32, sum 1.

    Raises:
        ValueError: an odd number of taps, which would shift the image, or taps that sum to zero.
    """
    if len(taps) % 2 or not sum(taps):
        raise ValueError(
            f"resample_filter needs an even number of taps with a sum, got {list(taps)}"
        )
    line = torch.tensor(list(taps), dtype=torch.float32)  # (T,)
    square = torch.outer(line, line)  # (T, T)
    return (square / square.sum())[None, None]  # (1, 1, T, T)


def halve(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter and keep every second pixel: ``x`` (B, C, R, R) to (B, C, R/2, R/2)."""
    return _filtered(x, kernel, stride=2, padding=kernel.shape[-1] // 2 - 1)


def double(x: Tensor, kernel: Tensor) -> Tensor:
    """Put zeros between the pixels and filter: ``x`` (B, C, R, R) to (B, C, 2R, 2R).

    A transposed convolution, written as a plain one: on a CPU in bfloat16 the depthwise transposed
    one takes several times as long as the full 3x3 convolution after it.
    """
    batch, channels, rows, columns = x.shape
    taps = kernel.shape[-1]
    margin = taps // 2
    spread = x.new_zeros(batch, 2 * rows + taps - 1, 2 * columns + taps - 1, channels)
    spread = spread.permute(0, 3, 1, 2)  # (B, C, 2R+T-1, 2R+T-1), channels last in memory
    spread[:, :, margin : margin + 2 * rows : 2, margin : margin + 2 * columns : 2] = x
    # Three of four pixels are zero: the factor keeps the mean of the image.
    return _filtered(spread, 4 * kernel.flip(2, 3))  # (B, C, 2R, 2R)


def _filtered(x: Tensor, kernel: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Each channel of ``x`` (B, C, R, R) through ``kernel`` (1, 1, T, T) by itself."""
    channels = x.shape[1]
    depthwise = kernel.to(x.dtype).expand(channels, -1, -1, -1)  # (C, 1, T, T)
    return F.conv2d(x, depthwise, stride=stride, padding=padding, groups=channels)


class Resample(nn.Module):
    """Halve or, with ``up``, double the side; no parameters.

    Args:
        taps: of the filter, an even number of them.
        up: double.
    """

    resample_filter: Tensor

    def __init__(self, taps: Sequence[float], *, up: bool) -> None:
        super().__init__()
        self.resize = double if up else halve
        self.register_buffer("resample_filter", low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, R, R) to (B, C, R/2, R/2) or (B, C, 2R, 2R)."""
        return self.resize(x, self.resample_filter)


class ResampledConv(nn.Conv2d):
    """Resample, then convolve at the new side.

    Args:
        in_channels: C.
        out_channels: D.
        kernel: side of the convolution's kernel, odd.
        taps: of the filter, an even number of them.
        up: double; halve otherwise.
    """

    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, taps: Sequence[float], *, up: bool
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.resize = double if up else halve
        self.register_buffer("resample_filter", low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, R, R) to (B, D, R/2, R/2) or (B, D, 2R, 2R)."""
        return super().forward(self.resize(x, self.resample_filter))


class HalvingConv(nn.Conv2d):
    """Convolve at the full side, then halve it (NCSN++'s residual input pyramid).

    The convolution reaches beyond the border by what the filter needs, so no zeros lie between.

    Args:
        in_channels: C.
        out_channels: D.
        kernel: side of the convolution's kernel, odd.
        taps: of the filter, an even number of them.
    """

    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, taps: Sequence[float]
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel, padding=kernel // 2 + len(taps) // 2 - 1
        )
        self.register_buffer("resample_filter", low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, R, R) to (B, D, R/2, R/2)."""
        full = super().forward(x)  # (B, D, R+T-2, R+T-2)
        return _filtered(full, self.resample_filter, stride=2)
