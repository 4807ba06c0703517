"""The cell of the multi-scale equilibrium U-Net: one pass over all maps of the state.

What keeps it a tame map is said in :mod:`deqgen.models.deq_unet`, and so is where it differs from
MDEQ (Bai et al. 2020, arXiv 2006.08656).

Letters: B samples, S scales, D_s channels and R_s side of the map at scale s (0 is the finest).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.layers import ResidualBlocks

if TYPE_CHECKING:
    from deqgen.models.deq_unet import DEQUNetConfig

Maps: TypeAlias = tuple[Tensor, ...]
"""One map a scale, finest first: S of (B, D_s, R_s, R_s)."""


class UNetCell(nn.Module):
    """The map whose fixed point is sought: one pass of a U-Net over all maps of the state.

    Row-wise: sample i of the image depends on sample i of state and arguments alone.
    """

    def __init__(self, config: DEQUNetConfig) -> None:
        super().__init__()
        c, widths = config, config.widths
        self.encoder = nn.ModuleList(ResidualBlocks(c.blocks, width, c.groups) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(f, g, 2, stride=2) for f, g in pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(g, 4 * f, 1) for f, g in pairwise(widths))
        self.decoder = nn.ModuleList(
            ResidualBlocks(c.blocks, width, c.groups) for width in widths[:-1]
        )
        self.norms = nn.ModuleList(nn.GroupNorm(c.groups, width) for width in widths)

    def forward(self, z: Maps, *args: Tensor) -> Maps:
        """S maps (B, D_s, R_s, R_s) to the same shapes.

        Args:
            z: the state.
            args: the S injections, then a row (B, 2*D_s) for each block if there are rows.
        """
        injected, rows = args[: len(z)], iter(args[len(z) :])
        skips: list[Tensor] = []
        for scale, level in enumerate(self.encoder):
            x = z[scale] + injected[scale]  # (B, D_s, R_s, R_s)
            if scale:
                x = x + self.down[scale - 1](skips[-1])  # (B, D_s, R_s, R_s)
            skips.append(level(x, rows))  # (B, D_s, R_s, R_s)
        x, maps = skips[-1], [skips[-1]]
        for scale in reversed(range(len(z) - 1)):
            finer = F.pixel_shuffle(self.up[scale](x), 2)  # (B, D_s, R_s, R_s)
            x = self.decoder[scale](skips[scale] + finer, rows)  # (B, D_s, R_s, R_s)
            maps.insert(0, x)
        return tuple(norm(x) for norm, x in zip(self.norms, maps, strict=True))
