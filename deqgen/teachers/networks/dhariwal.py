"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), as EDM configures it.

Letters: B samples, C image channels, S image side, W channels of a level, R side of a level,
N features of the noise level, E embedding, K classes, A augmentation labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.teachers.networks.blocks import (
    BlockStyle,
    PositionalAngles,
    UNetBlock,
    group_norm,
    hide_some,
    side_names,
)
from deqgen_solvers.autocast import Autocast

_CHANNELS_PER_HEAD = 64
_EPS = 1e-5


class DhariwalUNet(nn.Module):
    """The U-Net of ADM; the defaults are the class-conditional ImageNet-64 one's.

    Source: arXiv 2105.05233, section 3; arXiv 2206.00364, Table 7. The layers bear EDM's names.
    (Our code; NVIDIA's weights for it are CC BY-NC-SA 4.0.)

    Args:
        img_resolution: side of the square images (S), divisible by two for each level but one.
        in_channels: channels of the input.
        out_channels: channels of the output.
        label_dim: classes (K), 0 for an unconditional network.
        augment_dim: augmentation labels (A) of training, 0 for none; zero when sampling.
        model_channels: width of the finest level, times its entry of ``channel_mult``.
        channel_mult: a multiplier of the width for each level, finest first.
        channel_mult_emb: width of the embedding (E) over ``model_channels``.
        num_blocks: residual blocks a level; the decoder has one more.
        attn_resolutions: sides (R) whose blocks have self-attention, 64 channels a head; a level
            narrower than 64 has none. The middle of the U always has it.
        dropout: probability, in training alone.
        label_dropout: probability that training hides a sample's class (for guidance).

    Raises:
        ValueError: a side that cannot be halved.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_dropout, self.num_blocks = label_dropout, num_blocks
        self.names = side_names(img_resolution, len(channel_mult))
        width = model_channels * channel_mult_emb
        self.map_noise = PositionalAngles(model_channels, endpoint=False)
        self.map_augment = (
            nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        )
        self.map_layer0 = nn.Linear(model_channels, width)
        self.map_layer1 = nn.Linear(width, width)
        self.map_label = nn.Linear(label_dim, width, bias=False) if label_dim else None
        style = BlockStyle(embedding=width, eps=_EPS, dropout=dropout)
        widths = [model_channels * factor for factor in channel_mult]
        attending = [img_resolution >> level in attn_resolutions for level in range(len(widths))]
        heads = [
            w // _CHANNELS_PER_HEAD if on else 0 for w, on in zip(widths, attending, strict=True)
        ]
        self.enc = nn.ModuleDict()
        skips = self._build_encoder(in_channels, widths, heads, style)
        self.dec = nn.ModuleDict()
        self._build_decoder(skips, widths, heads, style)
        self.out_norm = group_norm(widths[0], _EPS)
        self.out_conv = nn.Conv2d(widths[0], out_channels, 3, padding=1)
        self._initialize()

    def _build_encoder(
        self, in_channels: int, widths: list[int], heads: list[int], style: BlockStyle
    ) -> list[int]:
        """Fill ``enc``; return the channels of what it hands to the decoder, in order."""
        skips = [widths[0]]
        for level, (name, width) in enumerate(zip(self.names, widths, strict=True)):
            before = skips[-1]
            if level == 0:
                self.enc[f"{name}_conv"] = nn.Conv2d(in_channels, width, 3, padding=1)
            else:
                self.enc[f"{name}_down"] = UNetBlock(before, before, style, resize="down")
                skips.append(before)
            for index in range(self.num_blocks):
                self.enc[f"{name}_block{index}"] = UNetBlock(
                    skips[-1], width, style, heads=heads[level]
                )
                skips.append(width)
        return skips

    def _build_decoder(
        self, skips: list[int], widths: list[int], heads: list[int], style: BlockStyle
    ) -> None:
        """Fill ``dec``; ``skips`` is used up."""
        now = skips[-1]
        for level in reversed(range(len(widths))):
            name, width = self.names[level], widths[level]
            if level == len(widths) - 1:
                middle = now // _CHANNELS_PER_HEAD
                self.dec[f"{name}_in0"] = UNetBlock(now, now, style, heads=middle)
                self.dec[f"{name}_in1"] = UNetBlock(now, now, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(now, now, style, resize="up")
            for index in range(self.num_blocks + 1):
                self.dec[f"{name}_block{index}"] = UNetBlock(
                    now + skips.pop(), width, style, heads=heads[level]
                )
                now = width

    def _initialize(self) -> None:
        """Zero the last layer of each branch and draw the class rows; the rest is PyTorch's own."""
        for name, part in self.named_modules():
            if name.endswith((".conv1", ".proj", "out_conv", "map_augment")):
                for parameter in part.parameters():
                    nn.init.zeros_(parameter)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Run the raw network.

        Args:
            x: scaled noisy images, ``(B, C, S, S)``.
            noise_labels: c_noise, ``(B,)``.
            class_labels: one-hot rows ``(B, K)``; a row of zeros, or ``None``, is "no class".
            augment_labels: ``(B, A)``; ``None`` is zeros.

        Returns:
            ``(B, out_channels, S, S)``.
        """
        with Autocast(x.device).off():  # the embedding is cheap, and wide in range
            embedding = self._embed(noise_labels, class_labels, augment_labels)  # (B, E)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)  # (B, W, R, R)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)  # (B, W + W', R, R)
            x = block(x, embedding)  # (B, W, R, R)
        image: Tensor = self.out_conv(F.silu(self.out_norm(x)))  # (B, out_channels, S, S)
        return image

    def _embed(self, level: Tensor, classes: Tensor | None, augmentation: Tensor | None) -> Tensor:
        angles = self.map_noise(level)  # (B, N/2)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, N)
        if self.map_augment is not None and augmentation is not None:
            features = features + self.map_augment(augmentation)  # (B, N)
        hidden = F.silu(self.map_layer0(features))  # (B, E)
        embedding: Tensor = self.map_layer1(hidden)  # (B, E)
        if self.map_label is not None and classes is not None:
            classes = hide_some(classes, self.label_dropout if self.training else 0.0)  # (B, K)
            embedding = embedding + self.map_label(classes)  # (B, E)
        return F.silu(embedding)  # (B, E)
