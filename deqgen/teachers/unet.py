"""A small class-conditional U-Net for 32x32 images, fast on a CPU.

Close in spirit to DDPM++/ADM (arXiv 2006.11239, 2105.05233): residual blocks with adaptive group
norm, self-attention at the middle resolution. Three choices keep it cheap:

1. The image is pixel-unshuffled by two first, which quarters the cost of the finest level.
2. One skip connection a level instead of one a block: decoder blocks are as narrow as encoder ones.
3. The width doubles when the resolution halves, so a convolution costs the same at every level and
   most parameters sit where they are cheapest to apply.

Letters: B samples, C image channels, S image side, W width of a level, R side of a level,
E embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.layers.attention import attend
from deqgen.layers.embeddings import noise_features


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Architecture of :class:`UNet`.

    Args:
        image_size: side of the square images, divisible by ``2 * 2 ** (len(widths) - 1)``.
        channels: image channels.
        num_classes: classes; the index ``num_classes`` itself means "no class".
        widths: channels of each level, finest first; multiples of ``group_size``.
        blocks: residual blocks of each level, in the encoder and again in the decoder.
            The coarsest level is the bottom of the U and has its blocks once.
        attention: for each level, whether its blocks are followed by self-attention.
        embedding: width of the joint embedding of noise level and class.
        group_size: channels a group of the group norms.
    """

    image_size: int = 32
    channels: int = 3
    num_classes: int = 10
    widths: tuple[int, ...] = (64, 128, 256)
    blocks: tuple[int, ...] = (2, 2, 1)
    attention: tuple[bool, ...] = (False, True, False)
    embedding: int = 256
    group_size: int = 16

    def __post_init__(self) -> None:
        levels = len(self.widths)
        if not (levels == len(self.blocks) == len(self.attention) >= 1):
            raise ValueError("widths, blocks and attention must have one entry for every level")
        if self.image_size % 2**levels:
            raise ValueError(
                f"image_size {self.image_size} must be divisible by {2**levels} for {levels} levels"
            )
        if any(width % self.group_size for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of {self.group_size}")


class ResidualBlock(nn.Module):
    """Group norm, SiLU, convolution, twice; the embedding scales and shifts the second norm."""

    def __init__(self, width: int, embedding: int, group_size: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(width // group_size, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.norm2 = nn.GroupNorm(width // group_size, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # every block starts as the identity
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, W, R, R)
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)  # (B, W, 1, 1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)  # (B, W, R, R)
        out: Tensor = x + self.conv2(h)  # (B, W, R, R)
        return out


class Attention(nn.Module):
    """Multi-head self-attention over the positions of a feature map, residual."""

    def __init__(self, width: int, group_size: int, head_size: int = 64) -> None:
        super().__init__()
        self.heads = max(width // head_size, 1)
        self.norm = nn.GroupNorm(width // group_size, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, R*R, W)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))  # (B, R*R, 3, heads, W/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, R*R, W/heads)
        tokens = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, R*R, W)
        out: Tensor = self.proj(tokens).transpose(1, 2).reshape(x.shape)  # (B, W, R, R)
        return x + out


class Level(nn.Module):
    """The blocks of one resolution on one side of the U."""

    def __init__(self, width: int, blocks: int, attention: bool, config: UNetConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(width, config.embedding, config.group_size) for _ in range(blocks)
        )
        self.attention = Attention(width, config.group_size) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)  # (B, W, R, R)
        return x if self.attention is None else self.attention(x)  # (B, W, R, R)


class UNet(nn.Module):
    """Map a scaled noisy image, its noise conditioning and its class to EDM's raw output F.

    ``forward(x, noise, label)``: ``x`` is ``(B, C, S, S)``, ``noise`` ``(B,)`` (EDM's c_noise),
    ``label`` ``(B,)`` int64 in ``0..num_classes``, where ``num_classes`` stands for "no class".
    Returns ``(B, C, S, S)``.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        packed = 4 * config.channels
        sides = list(zip(config.widths, config.blocks, config.attention, strict=True))

        self.noise_mlp = nn.Sequential(
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.embedding)
        nn.init.normal_(self.class_embedding.weight, std=1 / math.sqrt(config.embedding))

        self.stem = nn.Conv2d(packed, config.widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Level(*side, config) for side in sides[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 2, stride=2)
            for fine, coarse in zip(config.widths, config.widths[1:], strict=False)
        )
        self.bottom = Level(*sides[-1], config)
        self.up = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 1)
            for fine, coarse in zip(config.widths, config.widths[1:], strict=False)
        )
        self.merge = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in config.widths[:-1])
        self.decoder = nn.ModuleList(Level(*side, config) for side in sides[:-1])
        self.norm = nn.GroupNorm(config.widths[0] // config.group_size, config.widths[0])
        self.head = nn.Conv2d(config.widths[0], packed, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        features = noise_features(noise, self.config.embedding)  # (B, E)
        embedding = F.silu(self.noise_mlp(features) + self.class_embedding(label))  # (B, E)
        x = self.stem(F.pixel_unshuffle(x, 2))  # (B, W0, S/2, S/2)
        skips = []
        for level, down in zip(self.encoder, self.down, strict=True):
            x = level(x, embedding)  # (B, W, R, R)
            skips.append(x)
            x = down(x)  # (B, 2W, R/2, R/2)
        x = self.bottom(x, embedding)
        for index in reversed(range(len(skips))):
            x = F.pixel_shuffle(self.up[index](x), 2)  # (B, W, R, R)
            x = self.merge[index](torch.cat([x, skips[index]], dim=1))  # (B, W, R, R)
            x = self.decoder[index](x, embedding)  # (B, W, R, R)
        x = self.head(F.silu(self.norm(x)))  # (B, 4C, S/2, S/2)
        return F.pixel_shuffle(x, 2)  # (B, C, S, S)
