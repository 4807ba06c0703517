"""What both families are made of: one residual block in two styles, and two noise embeddings.

Letters: B samples, C channels in, D channels out, R side of the map, L = R*R, M heads,
K channels of a head, E embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.layers.attention import attend
from deqgen.layers.errors import ShapeError
from deqgen.teachers.networks.resampling import Resample, ResampledConv


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """What all blocks of one network share.

    Args:
        embedding: entries of the row that carries noise level and class (E).
        adaptive_scale: the row scales and shifts the second norm (ADM); else it is added to that
            norm's input (DDPM++).
        project_skip: the skip connection of a resampling block has a 1x1 convolution (DDPM++);
            else it has one only where the number of channels changes.
        skip_scale: what a sum of two branches is multiplied by; ``sqrt(1/2)`` keeps the variance.
        eps: of the norms.
        taps: of the resampling filter.
        dropout: probability, in training alone.
    """

    embedding: int
    adaptive_scale: bool = True
    project_skip: bool = False
    skip_scale: float = 1.0
    eps: float = 1e-5
    taps: tuple[float, ...] = (1, 1)
    dropout: float = 0.0


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """At most 32 groups, of at least four channels each."""
    return nn.GroupNorm(min(32, max(channels // 4, 1)), channels, eps=eps)


class UNetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a skip connection; then perhaps self-attention.

    Source: DDPM++ (arXiv 2011.13456, appendix H) and ADM (arXiv 2105.05233, section 3), as EDM
    lays them side by side (arXiv 2206.00364, Table 7).

    Args:
        in_channels: C.
        out_channels: D.
        style: what it shares with the other blocks.
        resize: ``"up"`` or ``"down"`` doubles or halves the side in the first convolution.
        heads: of the attention (M), 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        resize: str | None = None,
        heads: int = 0,
    ) -> None:
        super().__init__()
        self.adaptive_scale = style.adaptive_scale
        self.skip_scale = style.skip_scale
        self.dropout = style.dropout
        self.heads = heads
        self.norm0 = group_norm(in_channels, style.eps)
        self.conv0 = _convolution(in_channels, out_channels, 3, resize, style)
        self.affine = nn.Linear(style.embedding, out_channels * (2 if style.adaptive_scale else 1))
        self.norm1 = group_norm(out_channels, style.eps)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module | None = None
        if in_channels != out_channels or (resize and style.project_skip):
            self.skip = _convolution(in_channels, out_channels, 1, resize, style)
        elif resize:
            self.skip = Resample(style.taps, up=resize == "up")
        if heads:
            self.norm2 = group_norm(out_channels, style.eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x`` (B, C, R, R), ``embedding`` (B, E): returns (B, D, R', R'), R' the new side."""
        h = self.conv0(F.silu(self.norm0(x)))  # (B, D, R', R')
        row = self.affine(embedding)[:, :, None, None].to(h.dtype)  # (B, D or 2D, 1, 1)
        if self.adaptive_scale:
            scale, shift = row.chunk(2, dim=1)  # (B, D, 1, 1) each
            h = torch.addcmul(shift, self.norm1(h), scale + 1)  # (B, D, R', R')
        else:
            h = self.norm1(h + row)  # (B, D, R', R')
        h = self.conv1(F.dropout(F.silu(h), self.dropout, self.training))  # (B, D, R', R')
        x = (x if self.skip is None else self.skip(x)) + h  # (B, D, R', R')
        x = x * self.skip_scale
        return (x + self._attention(x)) * self.skip_scale if self.heads else x

    def _attention(self, x: Tensor) -> Tensor:
        batch, channels, rows, columns = x.shape
        # A head's channels lie together, and within them query, key and value of each channel.
        qkv = self.qkv(self.norm2(x)).flatten(2)  # (B, 3*D, L)
        qkv = qkv.view(batch, self.heads, channels // self.heads, 3, -1)  # (B, M, K, 3, L)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).contiguous()  # (B, M, L, K) each
        mixed = attend(query, key, value)  # (B, M, L, K)
        mixed = mixed.permute(0, 2, 1, 3).reshape(batch, rows, columns, channels)  # (B, R, R, D)
        out: Tensor = self.proj(mixed.permute(0, 3, 1, 2))  # (B, D, R, R)
        return out


def _convolution(
    in_channels: int, out_channels: int, kernel: int, resize: str | None, style: BlockStyle
) -> nn.Conv2d:
    if resize is None:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return ResampledConv(in_channels, out_channels, kernel, style.taps, up=resize == "up")


class PositionalAngles(nn.Module):
    """A noise level times frequencies from 1 down to 1/10,000 (DDPM, after arXiv 1706.03762).

    Args:
        channels: of the embedding; half as many angles.
        endpoint: whether the last frequency is 1/10,000 itself (DDPM++) or one step short (ADM).
    """

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.count = channels // 2
        self.steps = self.count - endpoint

    def forward(self, level: Tensor) -> Tensor:
        """``level`` (B,), c_noise: returns ``(B, channels/2)`` float32."""
        exponents = torch.arange(self.count, dtype=torch.float32, device=level.device)
        frequencies = (1 / 10_000) ** (exponents / self.steps)  # (channels/2,)
        return level.float()[:, None] * frequencies  # (B, channels/2)


class FourierAngles(nn.Module):
    """A noise level times random frequencies, drawn once and kept (NCSN++, arXiv 2006.10739).

    Args:
        channels: of the embedding; half as many angles.
        scale: standard deviation of the frequencies.
    """

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, level: Tensor) -> Tensor:
        """``level`` (B,), c_noise: returns ``(B, channels/2)`` float32."""
        return level.float()[:, None] * (2 * math.pi * self.freqs)  # (B, channels/2)


def side_names(img_resolution: int, levels: int) -> list[str]:
    """What the layers of each level are called after, finest first: ``"32x32"``, ``"16x16"``, ...

    Raises:
        ShapeError: the side cannot be halved from level to level.
    """
    if not levels or img_resolution < 1 or img_resolution % 2 ** (levels - 1):
        raise ShapeError(
            f"img_resolution={img_resolution} cannot be halved {levels - 1} times, as a "
            f"channel_mult of {levels} entries asks for"
        )
    sides = [img_resolution >> level for level in range(levels)]
    return [f"{side}x{side}" for side in sides]


def hide_some(classes: Tensor, probability: float) -> Tensor:
    """Zero each of the rows ``classes`` (B, K) with ``probability``, as dropout does."""
    if not probability:
        return classes
    kept = torch.rand(len(classes), 1, device=classes.device) >= probability  # (B, 1)
    return classes * kept
