"""Pre-norm residual blocks of convolutions, as in diffusion U-Nets (DDPM, arXiv 2006.11239; ADM,
arXiv 2105.05233).

What a block is told besides its input (a class, a noise level) comes as a row a sample that scales
and shifts its second norm. Rows are arguments, so that they are computed once for all iterations of
an equilibrium.

Letters: B samples, D channels, R side of the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Group norm, SiLU, convolution, twice, added to the input.

    Args:
        width: channels (D), a multiple of ``groups``.
        groups: groups of the norms.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    @property
    def row_size(self) -> int:
        """Entries of a row: a scale and a shift for each channel."""
        return 2 * self.norm2.num_channels

    def forward(self, x: Tensor, row: Tensor | None = None) -> Tensor:
        """``x`` (B, D, R, R) to the same shape; ``row`` is (B, 2*D)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))  # (B, D, R, R)
        if row is not None:
            scale, shift = row[:, :, None, None].to(h.dtype).chunk(2, dim=1)  # (B, D, 1, 1)
            h = h * (1 + scale) + shift  # (B, D, R, R)
        out: Tensor = x + self.conv2(F.silu(h))  # (B, D, R, R)
        return out


class ResidualBlocks(nn.ModuleList):
    """``count`` residual blocks of one size, applied in order."""

    def __init__(self, count: int, width: int, groups: int) -> None:
        super().__init__(ResidualBlock(width, groups) for _ in range(count))

    def __iter__(self) -> Iterator[ResidualBlock]:
        """Iterate over the blocks; narrower than the base class, for type checkers."""
        return cast("Iterator[ResidualBlock]", super().__iter__())

    def forward(self, x: Tensor, rows: Iterator[Tensor]) -> Tensor:
        """``x`` (B, D, R, R) to the same shape; a block takes the next of ``rows``, if any."""
        for block in self:
            x = block(x, next(rows, None))  # (B, D, R, R)
        return x
