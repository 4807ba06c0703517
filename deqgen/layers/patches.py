"""Images to tokens and back.

Letters: B samples, C channels, H and W pixels, P patch side, S = H/P tokens a side, L = S*S
tokens, D width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from deqgen.layers.errors import ShapeError


def grid_side(image_size: int, patch_size: int) -> int:
    """Tokens a side, S; raises :class:`ShapeError` if the patch does not divide the image."""
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        divisors = [str(p) for p in range(1, image_size + 1) if image_size % p == 0]
        raise ShapeError(
            f"patch_size={patch_size} does not divide image_size={image_size}; "
            f"the patch may be {', '.join(divisors) or 'any divisor of a positive size'}."
        )
    return image_size // patch_size


class PatchEmbedding(nn.Module):
    """Cut an image into patches and map each linearly to a token (Dosovitskiy 2021, eq. 1).

    Args:
        channels: channels of the image (C).
        patch_size: side of a patch in pixels (P).
        width: width of a token (D).
    """

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """``image`` (B, C, H, W) to tokens (B, L, D), row by row."""
        grid: Tensor = self.proj(image)  # (B, D, S, S)
        return grid.flatten(2).transpose(1, 2)  # (B, L, D)


class PatchDecoder(nn.Module):
    """LayerNorm, then a linear map from a token to the pixels of its patch, outside autocast.

    The map costs next to nothing, and bfloat16 has fewer levels between -1 and 1 than an 8-bit
    image has.

    Args:
        width: width of a token (D).
        patch_size: side of a patch in pixels (P).
        channels: channels of the image (C).
    """

    def __init__(self, width: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.channels = channels
        self.norm_final = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, patch_size**2 * channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, L, D) to an image (B, C, H, W)."""
        with full_precision(tokens.device.type):
            pixels = self.linear(self.norm_final(tokens))  # (B, L, P*P*C)
        return unpatchify(pixels, self.patch_size, self.channels)  # (B, C, H, W)


def unpatchify(pixels: Tensor, patch_size: int, channels: int) -> Tensor:
    """Lay patches (B, L, P*P*C), pixels before channels, out as an image (B, C, H, W)."""
    batch, tokens, _ = pixels.shape
    side = round(tokens**0.5)
    grid = pixels.reshape(batch, side, side, patch_size, patch_size, channels)  # (B,S,S,P,P,C)
    image = grid.permute(0, 5, 1, 3, 2, 4)  # (B, C, S, P, S, P)
    return image.reshape(batch, channels, side * patch_size, side * patch_size)  # (B, C, H, W)


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """No autocast, on devices that know it (the meta device does not)."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
