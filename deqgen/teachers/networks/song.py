"""DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H), as EDM configures them.

Letters: B samples, C image channels, S image side, W channels of a level, R side of a level,
N features of the noise level, E embedding, K classes, A augmentation labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.teachers.names import unknown
from deqgen.teachers.networks.blocks import (
    BlockStyle,
    FourierAngles,
    PositionalAngles,
    UNetBlock,
    group_norm,
    hide_some,
    side_names,
)
from deqgen.teachers.networks.resampling import HalvingConv, Resample
from deqgen_solvers.autocast import Autocast

_EPS = 1e-6


class SongUNet(nn.Module):
    """The U-Net of DDPM++ (the defaults) and NCSN++.

    NCSN++ is ``embedding_type="fourier", encoder_type="residual", channel_mult_noise=2,
    resample_filter=[1, 3, 3, 1]``. Source: arXiv 2011.13456, appendix H; arXiv 2206.00364,
    Table 7. The layers bear EDM's names. (Our code; NVIDIA's weights for it are CC BY-NC-SA 4.0.)

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
        attn_resolutions: sides (R) whose encoder blocks and last decoder block have self-attention;
            the middle of the U always has it.
        dropout: probability, in training alone.
        label_dropout: probability that training hides a sample's class (for guidance).
        embedding_type: ``"positional"`` or ``"fourier"``.
        channel_mult_noise: features of the noise level (N) over ``model_channels``.
        encoder_type: ``"standard"``, or how the image itself enters each level: ``"skip"`` or
            ``"residual"``.
        decoder_type: ``"standard"``, or ``"skip"``: each level adds to the output image.
        resample_filter: taps of the resampling filter.

    Raises:
        ValueError: a type that is none of the above, or a side that cannot be halved.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        _check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        _check_choice("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _check_choice("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dropout, self.num_blocks = label_dropout, num_blocks
        self.encoder_type, self.decoder_type = encoder_type, decoder_type
        self.names = side_names(img_resolution, len(channel_mult))
        features, width = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        fourier = embedding_type == "fourier"
        self.map_noise = (
            FourierAngles(features) if fourier else PositionalAngles(features, endpoint=True)
        )
        self.map_label = nn.Linear(label_dim, features) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, features, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(features, width)
        self.map_layer1 = nn.Linear(width, width)
        style = BlockStyle(
            embedding=width,
            adaptive_scale=False,
            project_skip=True,
            skip_scale=math.sqrt(0.5),
            eps=_EPS,
            taps=tuple(resample_filter),
            dropout=dropout,
        )
        widths = [model_channels * factor for factor in channel_mult]
        heads = [int(img_resolution >> n in attn_resolutions) for n in range(len(widths))]
        self.enc = nn.ModuleDict()
        skips = self._build_encoder(in_channels, model_channels, widths, heads, style)
        self.dec = nn.ModuleDict()
        self._build_decoder(out_channels, skips, widths, heads, style)
        self._initialize()

    def _build_encoder(
        self, in_channels: int, stem: int, widths: list[int], heads: list[int], style: BlockStyle
    ) -> list[int]:
        """Fill ``enc``; return the channels of what it hands to the decoder, in order."""
        skips, pyramid = [stem], in_channels
        for level, (name, width) in enumerate(zip(self.names, widths, strict=True)):
            before = skips[-1]
            if level == 0:
                self.enc[f"{name}_conv"] = nn.Conv2d(in_channels, stem, 3, padding=1)
            else:
                self.enc[f"{name}_down"] = UNetBlock(before, before, style, resize="down")
                skips.append(before)
                if self.encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Resample(style.taps, up=False)
                    self.enc[f"{name}_aux_skip"] = nn.Conv2d(pyramid, before, 1)
                elif self.encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = HalvingConv(pyramid, before, 3, style.taps)
                    pyramid = before
            for index in range(self.num_blocks):
                self.enc[f"{name}_block{index}"] = UNetBlock(
                    skips[-1], width, style, heads=heads[level]
                )
                skips.append(width)
        return skips

    def _build_decoder(
        self,
        out_channels: int,
        skips: list[int],
        widths: list[int],
        heads: list[int],
        style: BlockStyle,
    ) -> None:
        """Fill ``dec``; ``skips`` is used up."""
        now = skips[-1]
        for level in reversed(range(len(widths))):
            name, width, deepest = self.names[level], widths[level], level == len(widths) - 1
            if deepest:
                self.dec[f"{name}_in0"] = UNetBlock(now, now, style, heads=1)
                self.dec[f"{name}_in1"] = UNetBlock(now, now, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(now, now, style, resize="up")
            for index in range(self.num_blocks + 1):
                attending = heads[level] if index == self.num_blocks else 0
                self.dec[f"{name}_block{index}"] = UNetBlock(
                    now + skips.pop(), width, style, heads=attending
                )
                now = width
            if self.decoder_type == "skip" or level == 0:
                if self.decoder_type == "skip" and not deepest:
                    self.dec[f"{name}_aux_up"] = Resample(style.taps, up=True)
                self.dec[f"{name}_aux_norm"] = group_norm(width, _EPS)
                self.dec[f"{name}_aux_conv"] = nn.Conv2d(width, out_channels, 3, padding=1)

    def _initialize(self) -> None:
        """Xavier-uniform, zero biases; the last layer of each branch starts at nearly nothing."""
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                branch_end = name.endswith((".conv1", ".proj", "_aux_conv"))
                gain = 1e-5 if branch_end else math.sqrt(0.2) if name.endswith(".qkv") else 1.0
                nn.init.xavier_uniform_(part.weight, gain)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

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
        x, skips = self._encode(x, embedding)  # (B, W, R, R), the deepest level
        return self._decode(x, skips, embedding)  # (B, out_channels, S, S)

    def _embed(self, level: Tensor, classes: Tensor | None, augmentation: Tensor | None) -> Tensor:
        angles = self.map_noise(level)  # (B, N/2)
        features = torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, N)
        if self.map_label is not None:
            count = self.map_label.in_features
            if classes is None:
                classes = features.new_zeros(len(features), count)  # (B, K)
            classes = hide_some(classes, self.label_dropout if self.training else 0.0)  # (B, K)
            features = features + self.map_label(classes * math.sqrt(count))  # (B, N)
        if self.map_augment is not None and augmentation is not None:
            features = features + self.map_augment(augmentation)  # (B, N)
        hidden = F.silu(self.map_layer0(features))  # (B, E)
        return F.silu(self.map_layer1(hidden))  # (B, E)

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips: list[Tensor] = []
        pyramid = x  # (B, C, S, S)
        for level, name in enumerate(self.names):
            if level == 0:
                x = self.enc[f"{name}_conv"](x)  # (B, W, S, S)
            else:
                x = self.enc[f"{name}_down"](x, embedding)  # (B, W, R, R), the new R
                if self.encoder_type == "skip":
                    pyramid = self.enc[f"{name}_aux_down"](pyramid)  # (B, C, R, R)
                    x = x + self.enc[f"{name}_aux_skip"](pyramid)  # (B, W, R, R)
                elif self.encoder_type == "residual":
                    entering = self.enc[f"{name}_aux_residual"](pyramid)  # (B, W, R, R)
                    x = pyramid = (x + entering) * math.sqrt(0.5)  # (B, W, R, R)
            skips.append(x)
            for index in range(self.num_blocks):
                x = self.enc[f"{name}_block{index}"](x, embedding)  # (B, W, R, R)
                skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        image: Tensor | None = None
        for level in reversed(range(len(self.names))):
            name = self.names[level]
            if level == len(self.names) - 1:
                x = self.dec[f"{name}_in0"](x, embedding)  # (B, W, R, R)
                x = self.dec[f"{name}_in1"](x, embedding)  # (B, W, R, R)
            else:
                x = self.dec[f"{name}_up"](x, embedding)  # (B, W, R, R), the new R
            for index in range(self.num_blocks + 1):
                x = torch.cat([x, skips.pop()], dim=1)  # (B, W + W', R, R)
                x = self.dec[f"{name}_block{index}"](x, embedding)  # (B, W, R, R)
            if self.decoder_type == "skip" or level == 0:
                part = self.dec[f"{name}_aux_conv"](F.silu(self.dec[f"{name}_aux_norm"](x)))
                if image is not None:
                    part = part + self.dec[f"{name}_aux_up"](image)  # (B, out_channels, R, R)
                image = part
        assert image is not None, "level 0 always makes the image"
        return image


def _check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(unknown(option, value, allowed))
