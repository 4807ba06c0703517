"""The blocks of Inception v3 (Szegedy et al. 2015, arXiv 1512.00567), as FID's network has them.

Numbered deviations are those of :mod:`deqgen.evaluation.inception`.

Letters: B images, C channels, H and W sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BatchNorm(nn.Module):
    """Batch normalisation by stored statistics, which never change; eps is TensorFlow's 0.001."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3
        )


class Conv(nn.Module):
    """Convolution, batch norm, ReLU. With stride 1 the sides stay, unless ``valid``."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        valid: bool = False,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid or stride > 1 else (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(
            channels_in, channels_out, sides, stride=stride, padding=padding, bias=False
        )
        self.bn = BatchNorm(channels_out)

    def forward(self, x: Tensor) -> Tensor:  # (B, Cin, H, W)
        x = self.conv(x)  # (B, Cout, H', W')
        return functional.relu(self.bn(x), inplace=True)  # (B, Cout, H', W')


def _average(x: Tensor) -> Tensor:
    """Means over 3x3 pixels; at the border, of those that there are (deviation 1 of FID)."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def halve(x: Tensor) -> Tensor:
    """Maxima of 3x3 pixels, every second one; the sides become (H - 1) // 2."""
    return functional.max_pool2d(x, 3, stride=2)


class MixedA(nn.Module):
    """35x35: figure 5 of the paper, with 5x5 in one branch; C becomes 224 + ``pool``."""

    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1 = Conv(channels, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(channels, pool, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 35, 35)
        one = self.branch1x1(x)  # (B, 64, 35, 35)
        five = self.branch5x5_2(self.branch5x5_1(x))  # (B, 64, 35, 35)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))  # (B, 96, 35, 35)
        double = self.branch3x3dbl_3(double)  # (B, 96, 35, 35)
        pool = self.branch_pool(_average(x))  # (B, pool, 35, 35)
        return torch.cat([one, five, double, pool], dim=1)


class MixedB(nn.Module):
    """35x35 to 17x17: figure 10; C becomes 480 + C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(channels, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 35, 35)
        three = self.branch3x3(x)  # (B, 384, 17, 17)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))  # (B, 96, 35, 35)
        double = self.branch3x3dbl_3(double)  # (B, 96, 17, 17)
        return torch.cat([three, double, halve(x)], dim=1)


class MixedC(nn.Module):
    """17x17: figure 6, 7x7 split into 1x7 and 7x1, ``inner`` channels wide; C becomes 768."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 192, 1)
        self.branch7x7_1 = Conv(channels, inner, 1)
        self.branch7x7_2 = Conv(inner, inner, (1, 7))
        self.branch7x7_3 = Conv(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(channels, inner, 1)
        self.branch7x7dbl_2 = Conv(inner, inner, (7, 1))
        self.branch7x7dbl_3 = Conv(inner, inner, (1, 7))
        self.branch7x7dbl_4 = Conv(inner, inner, (7, 1))
        self.branch7x7dbl_5 = Conv(inner, 192, (1, 7))
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 17, 17)
        one = self.branch1x1(x)  # (B, 192, 17, 17)
        seven = self.branch7x7_2(self.branch7x7_1(x))  # (B, inner, 17, 17)
        seven = self.branch7x7_3(seven)  # (B, 192, 17, 17)
        double = self.branch7x7dbl_2(self.branch7x7dbl_1(x))  # (B, inner, 17, 17)
        double = self.branch7x7dbl_4(self.branch7x7dbl_3(double))  # (B, inner, 17, 17)
        double = self.branch7x7dbl_5(double)  # (B, 192, 17, 17)
        pool = self.branch_pool(_average(x))  # (B, 192, 17, 17)
        return torch.cat([one, seven, double, pool], dim=1)


class MixedD(nn.Module):
    """17x17 to 8x8: figure 10 with 7x7 in one branch; C becomes 512 + C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(channels, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(channels, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 17, 17)
        three = self.branch3x3_2(self.branch3x3_1(x))  # (B, 320, 8, 8)
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))  # (B, 192, 17, 17)
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))  # (B, 192, 8, 8)
        return torch.cat([three, seven, halve(x)], dim=1)


class MixedE(nn.Module):
    """8x8: figure 7, branches that end in 1x3 beside 3x1; C becomes 2048."""

    def __init__(self, channels: int, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3))
        self.branch3x3_2b = Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = Conv(channels, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1))
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 8, 8)
        one = self.branch1x1(x)  # (B, 320, 8, 8)
        three = self.branch3x3_1(x)  # (B, 384, 8, 8)
        three = [self.branch3x3_2a(three), self.branch3x3_2b(three)]  # twice (B, 384, 8, 8)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))  # (B, 384, 8, 8)
        double = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]  # as above
        # Deviation 2 of FID.
        pool = functional.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        return torch.cat([one, *three, *double, self.branch_pool(pool)], dim=1)
