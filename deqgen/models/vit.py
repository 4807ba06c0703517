"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) from noise to image: the baseline
without an equilibrium.

The same patches, positions, blocks and decoder as GET, and the class enters the same way, so that
the two differ in the equilibrium alone (Geng et al. 2023, arXiv 2401.08639, section 4).

Letters: B samples, C channels, H and W pixels, P patch side, L = (H/P)*(W/P) tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from deqgen.gradients import State
from deqgen.layers import (
    BlockList,
    Generators,
    LabelEmbedding,
    PatchDecoder,
    PatchEmbedding,
    grid_side,
    initialize_transformer,
    sincos_positions,
)
from deqgen.models.protocol import GenerativeModel, GeneratorOutput, ModelConfig, Stopping
from deqgen.models.registry import Preset, register_model
from deqgen_solvers import Solver


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """Architecture of a :class:`ViT`; the defaults are ViT-S/2.

    Args:
        image_size: side of the square images, in pixels.
        channels: channels of the images.
        patch_size: side of a patch, in pixels; divides ``image_size``.
        num_classes: classes the model is conditional on; None for an unconditional model.
        width: width of a token (D), a multiple of ``heads`` and of 4.
        heads: attention heads.
        depth: transformer blocks.
        mlp_ratio: hidden units of the MLPs, per unit of width.
    """

    width: int = 384
    heads: int = 6
    depth: int = 12
    mlp_ratio: float = 4.0


class ViT(GenerativeModel):
    """Noise to image through ``depth`` different transformer blocks.

    Args:
        config: sizes.
        generator: source of the initial weights; default: a CPU generator with seed 0.
    """

    architecture: ClassVar[str] = "ViT"
    references: ClassVar[tuple[str, ...]] = ("dosovitskiy2021image", "geng2023onestep")
    config: ViTConfig

    def __init__(self, config: ViTConfig, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        device = torch.get_default_device()
        # On meta, so that no constructor draws weights that are drawn again below.
        with torch.device("meta"):
            self.x_embedder = PatchEmbedding(c.channels, c.patch_size, width)
            self.pos_embed = nn.Parameter(torch.empty(1, c.tokens, width), requires_grad=False)
            self.y_embedder = LabelEmbedding(c.num_classes, 3 * width) if c.num_classes else None
            self.blocks = BlockList(c.depth, width, c.heads, c.mlp_ratio)
            self.final_layer = PatchDecoder(width, c.patch_size, c.channels)
        self.to_empty(device=device)
        self.initialize(generator)

    @torch.no_grad()
    def initialize(self, generator: Generator | None = None) -> None:
        """Draw the weights and write the positions; after ``to_empty`` on a meta model too."""
        if self.pos_embed.is_meta:
            return
        initialize_transformer(self, generator or Generator().manual_seed(0))
        nn.init.zeros_(self.final_layer.linear.weight)
        c = self.config
        self.pos_embed.copy_(sincos_positions(grid_side(c.image_size, c.patch_size), c.width))

    def stages(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        *,
        max_steps: int | None = None,
        tol: Stopping = "model",
        solver: str | Solver[Any] | None = None,
        trace: bool = False,
        generator: Generators = None,
        z0: State | None = None,
        sigma: Tensor | None = None,
    ) -> GeneratorOutput:
        """Generate images; options of a solve are accepted and not used.

        Raises:
            ValueError: noise or label do not fit the model, or a ``sigma``, which it never takes.
            TypeError: noise that is not floating point, or a label that is not int64.
        """
        self.check_inputs(noise, label, sigma)
        row = None  # (B, 3*D)
        if self.y_embedder is not None and label is not None:
            row = self.y_embedder(label)  # (B, 3*D)
        x = self.x_embedder(noise.to(self.pos_embed.dtype)) + self.pos_embed  # (B, L, D)
        for block in self.blocks:
            x = block(x, row=row)  # (B, L, D)
        image = self.final_layer(x)  # (B, C, H, W)
        return GeneratorOutput(image, (image,), None)


# width, heads, depth. S to XL are the usual ones; N is ours, for CPUs.
_SIZES = {
    "ViT-N": (192, 3, 8),
    "ViT-S": (384, 6, 12),
    "ViT-B": (768, 12, 12),
    "ViT-L": (1024, 16, 24),
    "ViT-XL": (1152, 16, 28),
}


def _register_sizes() -> None:
    register_model("ViT")(Preset(ViT, ViTConfig))
    for size, (width, heads, depth) in _SIZES.items():
        for patch in (2, 4, 8):
            preset = {"width": width, "heads": heads, "depth": depth, "patch_size": patch}
            register_model(f"{size}/{patch}")(Preset(ViT, ViTConfig, preset))


_register_sizes()
