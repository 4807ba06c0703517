"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193) as a feature network: its class token.

With ViT-L/14 this is the ``fd_dinov2`` of EDM2 (arXiv 2312.02696), whose preparation of images is
taken, too. Names are those of ``dinov2_vitl14_pretrain.pth`` and its smaller siblings; sizes are
read from the shapes. The giant and the networks with registers are not built.

Letters: B images, D width, M hidden width of the MLP, G patches a side, L tokens (1 + 16 * 16).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.frechet import fingerprint
from deqgen.evaluation.pixels import AT_ONCE, exact_float32, quantised

SIDE = 224
_HEAD = 64  # width of an attention head, in all sizes
_PUBLISHED = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2"}  # by width
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, of values from 0 to 1


class Attention(nn.Module):
    """Self-attention with heads of 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D)
        qkv = self.qkv(x).view(*x.shape[:2], 3, -1, _HEAD)  # (B, L, 3, D / 64, 64)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # 3 times (B, D / 64, L, 64)
        mixed = functional.scaled_dot_product_attention(query, key, value)  # (B, D / 64, L, 64)
        x = self.proj(mixed.transpose(1, 2).flatten(2))  # (B, L, D)
        return x


class Block(nn.Module):
    """A pre-norm transformer block; both branches have a learnt factor a channel."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.ls1 = nn.ParameterDict({"gamma": torch.ones(width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))
        )
        self.ls2 = nn.ParameterDict({"gamma": torch.ones(width)})

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D)
        x = x + self.ls1["gamma"] * self.attn(self.norm1(x))  # (B, L, D)
        x = x + self.ls2["gamma"] * self.mlp(self.norm2(x))  # (B, L, D)
        return x


class DINOv2(nn.Module):
    """A vision transformer; its class token, after the last norm, is the feature vector.

    ``depth`` blocks, MLPs of ``hidden`` channels, patches of ``patch`` pixels (a divisor of 224),
    positions learnt for ``grid`` x ``grid`` of them.
    """

    num_classes = None

    def __init__(self, width: int, depth: int, hidden: int, patch: int, grid: int) -> None:
        super().__init__()
        self.num_features, self.grid, self.patch = width, grid, patch
        self.name = _PUBLISHED.get(width, f"dinov2_{width}")
        self.distance = f"fd_{self.name}"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the training; in every file
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, patch, stride=patch)))
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the weights; a reference is held against it."""
        return fingerprint(self)

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, 224, 224), of mean 0 and variance 1
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, L - 1, D)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, L, D)
        x = x + self.positions()  # (B, L, D)
        for block in self.blocks:
            x = block(x)  # (B, L, D)
        x = self.norm(x[:, 0])  # (B, D)
        return x

    def positions(self) -> Tensor:
        """Positions (1, L, D) of the patches of a 224x224 image, from the learnt G x G."""
        side = SIDE // self.patch
        if side == self.grid:
            return self.pos_embed
        learnt = self.pos_embed[:, 1:].view(1, self.grid, self.grid, -1)  # (1, G, G, D)
        # The authors add 0.1 against rounding; it is part of the positions that the network knows.
        scale = (side + 0.1) / self.grid
        resized = functional.interpolate(
            learnt.permute(0, 3, 1, 2), scale_factor=(scale, scale), mode="bicubic"
        )  # (1, D, 16, 16)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def measure(self, images: Tensor) -> tuple[Tensor, None]:
        """Features (B, D) and no logits of images (B, 3, H, W) in [-1, 1]; no gradient.

        They are rounded to 256 levels, as a PNG would, and resized to 224x224 by cubic
        interpolation, with averaging where they shrink. Raises EvaluationInputError as all do.
        """
        device = self.cls_token.device
        levels = quantised(images, device)
        with torch.no_grad(), exact_float32(device.type):
            parts = [self(_scaled(part)) for part in torch.split(levels, AT_ONCE)]
        return torch.cat(parts), None


def _scaled(levels: Tensor) -> Tensor:
    """Bytes (B, 3, H, W) as the network takes them, (B, 3, 224, 224)."""
    x = functional.interpolate(levels.float(), size=(SIDE, SIDE), mode="bicubic", antialias=True)
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    return (x / 255 - mean) / std


def dinov2_sizes(tensors: Mapping[str, Tensor], path: Path) -> tuple[int, int, int, int, int]:
    """The arguments of the :class:`DINOv2` of a file; refuses what cannot be one."""
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
        hidden = len(tensors["blocks.0.mlp.fc1.weight"])
        if width % _HEAD or SIDE % patch:
            raise ValueError
    except (KeyError, ValueError, IndexError):
        raise EvaluationInputError(
            f"{path} has a cls_token and is no DINOv2 of size S, B or L: patch_embed.proj.weight, "
            "pos_embed or blocks.0.mlp.fc1.weight is missing or of another shape."
        ) from None
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    return width, depth, hidden, patch, grid
