"""Generative Equilibrium Transformer (Geng et al. 2023, arXiv 2401.08639), a deep equilibrium model
(Bai et al. 2019, arXiv 1909.01377).

Noise becomes tokens; an injection transformer reads them once; its output, and the class, are
added to the queries, keys and values of an equilibrium transformer, whose few blocks are applied
again and again to a state (six times as published); a normalisation and a linear map decode the
state into an image.

The name says equilibrium; the state has none in any model that we trained. The blocks are residual
and nothing bounds their sum, so each evaluation adds about the same vector again. What settles is
the direction of the state, and the decoder's LayerNorm reads little else: images converge. The
residual relative to the state falls like 1/k by growth alone; it tells how many evaluations there
have been, and not how near a fixed point is.

Letters: B samples, C channels, H and W pixels, P patch side, L = (H/P)*(W/P) tokens, D width,
N equilibrium blocks, K supervised states.

Deviations from the published code, each marked where it happens:

1. The initial state comes from a generator, or is one recorded draw; never from the global
   generator.
2. What does not change over the iterations (bias, class, injection) is summed before them.
3. Images are decoded outside autocast: the last map costs next to nothing and bfloat16 has fewer
   levels between -1 and 1 than an 8-bit image.
4. ``noise_level=True``, off by default, is no part of the paper: the model is told how noisy its
   input is and denoises it, which makes it a diffusion model (EDM, arXiv 2206.00364). A row for the
   noise level is added to all QKV, as the class is.
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
    NoiseLevelEmbedding,
    PatchDecoder,
    PatchEmbedding,
    grid_side,
    initialize_transformer,
    normal_start,
    sincos_positions,
)
from deqgen.models.equilibrium import EquilibriumConfig, EquilibriumModel, check_state
from deqgen.models.protocol import GeneratorOutput, Stopping
from deqgen.models.registry import Preset, register_model
from deqgen.teachers.edm import Preconditioning
from deqgen_solvers import Solver


@dataclass(frozen=True, kw_only=True)
class GETConfig(EquilibriumConfig):
    """Architecture and iteration of a :class:`GET`; the defaults are GET-T/2.

    Args:
        image_size: side of the square images, in pixels.
        channels: channels of the images.
        patch_size: side of a patch, in pixels; divides ``image_size``.
        num_classes: classes the model is conditional on; None for an unconditional model.
        width: width of a token (D), a multiple of ``heads`` and of 4.
        heads: attention heads.
        depth: blocks of the injection transformer.
        deq_depth: blocks of the equilibrium transformer (N).
        mlp_ratio: hidden units of the injection MLPs, per unit of width.
        deq_mlp_ratio: the same for the equilibrium MLPs.

    The defaults of :class:`EquilibriumConfig` are the published ones: six plain iterations,
    unrolled in training. ``noise_level`` is deviation 4.
    """

    width: int = 256
    heads: int = 4
    depth: int = 6
    deq_depth: int = 3
    mlp_ratio: float = 4.0
    deq_mlp_ratio: float = 6.0


class GET(EquilibriumModel):
    """Noise to image in one pass through an equilibrium.

    Training unrolls ``max_steps`` plain iterations and returns the images of all of them.
    Evaluation spends at most as many evaluations and returns the image of f(z) for the iterate z
    of lowest residual ||f(z) - z||, per sample. A tolerance ends a sample early, but by a residual
    that falls as the state grows (see the module's text): to save work lower ``max_steps``.

    Args:
        config: sizes and iteration.
        generator: source of the initial weights; default: a CPU generator with seed 0.

    Attributes:
        deq: the :class:`DEQ` layer; ``deq.solver`` and ``deq.gradient`` may be set at any time and
            are saved with the model as they then are.
    """

    architecture: ClassVar[str] = "GET"
    references: ClassVar[tuple[str, ...]] = ("geng2023onestep", "bai2019deep")
    config: GETConfig
    initial_draw: Tensor

    def __init__(self, config: GETConfig, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c, width = config, config.width
        device = torch.get_default_device()
        # On meta, so that no constructor draws weights that are drawn again below.
        with torch.device("meta"):
            self.x_embedder = PatchEmbedding(c.channels, c.patch_size, width)
            self.pos_embed = nn.Parameter(torch.empty(1, c.tokens, width), requires_grad=False)
            classes = c.num_classes + c.noise_level if c.num_classes else 0
            self.y_embedder = LabelEmbedding(classes, 3 * width) if classes else None
            self.blocks = BlockList(c.depth, width, c.heads, c.mlp_ratio)
            self.qkv_inj = nn.Linear(width, 3 * width * c.deq_depth, bias=False)
            self.deq_blocks = BlockList(c.deq_depth, width, c.heads, c.deq_mlp_ratio)
            self.final_layer = PatchDecoder(width, c.patch_size, c.channels)
            # The last one, so that the others draw the same weights with it as without.
            self.noise_embedder = NoiseLevelEmbedding(width, 3 * width) if c.noise_level else None
            self.register_buffer("initial_draw", torch.empty(1, c.tokens, width), persistent=False)
        self.deq = self.layer(self.iterate)
        self.to_empty(device=device)
        self.initialize(generator)

    @torch.no_grad()
    def initialize(self, generator: Generator | None = None) -> None:
        """Draw the weights and write the fixed tensors; after ``to_empty`` on a meta model too.

        Published initialisation: see :func:`initialize_transformer`; the last linear map starts
        at zero.
        """
        if self.pos_embed.is_meta:
            return
        initialize_transformer(self, generator or Generator().manual_seed(0))
        nn.init.zeros_(self.final_layer.linear.weight)
        c = self.config
        self.pos_embed.copy_(sincos_positions(grid_side(c.image_size, c.patch_size), c.width))
        self.write_fixed_buffers()

    @torch.no_grad()
    def write_fixed_buffers(self) -> None:
        """Write the state that samples without a generator start from (deviation 1)."""
        self.initial_draw.copy_(normal_start(1, self.initial_draw.shape[1:], device="cpu"))

    def stages(self) -> Sequence[nn.Module]:
        """The blocks of the injection transformer."""
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
        """Generate images; the arguments are those of :meth:`GenerativeModel.forward`.

        Raises:
            ValueError: noise, label, z0, sigma or max_steps do not fit the model.
            TypeError: noise or sigma that are not floating point, or a label that is not int64.
        """
        self.check_inputs(noise, label, sigma)
        at = None if sigma is None else Preconditioning.at(sigma)  # deviation 4
        x = noise if at is None else at.network_input(noise)  # (B, C, H, W)
        addends = self.embed(x, label, None if at is None else at.c_noise)  # N of (B, L, 3*D)
        start = self.initial_state(noise, generator, z0)  # (B, L, D)
        equilibrium = self.solve(
            addends, start, max_steps=max_steps, tol=tol, solver=solver, trace=trace
        )
        images = self.decode(equilibrium.states)  # K of (B, C, H, W)
        if at is not None:
            images = tuple(at.denoised(noise, image) for image in images)  # K of (B, C, H, W)
        return GeneratorOutput(images[-1], images, equilibrium)

    def embed(
        self, noise: Tensor, label: Tensor | None = None, level: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Run the injection transformer, once for all iterations.

        Args:
            noise: ``(B, C, H, W)``, of about unit variance.
            label: as for :meth:`forward`.
            level: ``(B,)``, EDM's c_noise, for a model that takes noise levels (deviation 4).

        Returns:
            For each equilibrium block all that is added to its QKV, ``(B, L, 3*D)`` (deviation 2).
        """
        row = None  # (B, 3*D)
        if self.y_embedder is not None and label is not None:
            row = self.y_embedder(label)  # (B, 3*D)
        if self.noise_embedder is not None and level is not None:
            told = self.noise_embedder(level)  # (B, 3*D)
            row = told if row is None else row + told  # (B, 3*D)
        x = self.x_embedder(noise.to(self.pos_embed.dtype)) + self.pos_embed  # (B, L, D)
        for block in self.blocks:
            x = block(x, row=row)  # (B, L, D)
        injection = self.qkv_inj(x).chunk(self.config.deq_depth, dim=-1)  # N of (B, L, 3*D)
        return tuple(
            block.attn.fold(row, token)
            for block, token in zip(self.deq_blocks, injection, strict=True)
        )

    def iterate(self, z: Tensor, *addends: Tensor) -> Tensor:
        """The cell f: ``z`` (B, L, D) to (B, L, D), with the N tensors that ``embed`` returned."""
        for block, addend in zip(self.deq_blocks, addends, strict=True):
            z = block(z, addend)  # (B, L, D)
        return z

    def decode(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """K states (B, L, D) to K images (B, C, H, W), in one batch."""
        stacked = torch.cat(states) if len(states) > 1 else states[0]  # (K*B, L, D)
        image = self.final_layer(stacked)  # (K*B, C, H, W), deviation 3
        return tuple(image.chunk(len(states)) if len(states) > 1 else (image,))

    def initial_state(
        self, noise: Tensor, generator: Generators = None, z0: State | None = None
    ) -> Tensor:
        """Return z0 (B, L, D): as given, or from ``generator``, or as recorded (deviation 1)."""
        batch, dtype = noise.shape[0], self.pos_embed.dtype
        shape = (self.config.tokens, self.config.width)
        if z0 is not None:
            check_state("z0", z0, (batch, *shape))
            given: Tensor = z0.to(noise.device, dtype)  # (B, L, D)
            return given
        if generator is None:
            return self.initial_draw.to(dtype).expand(batch, -1, -1)  # (B, L, D)
        return normal_start(batch, shape, generator, device=noise.device, dtype=dtype)


# width, heads, depth, deq_depth, deq_mlp_ratio. T to B+ are published (at patch 2); N is ours,
# for CPUs.
_SIZES = {
    "GET-N": (192, 3, 1, 1, 4.0),
    "GET-T": (256, 4, 6, 3, 6.0),
    "GET-M": (384, 6, 6, 3, 6.0),
    "GET-S": (512, 8, 6, 3, 8.0),
    "GET-B": (768, 12, 1, 3, 12.0),
    "GET-B+": (768, 12, 6, 3, 8.0),
}


def _register_sizes() -> None:
    names = ("width", "heads", "depth", "deq_depth", "deq_mlp_ratio")
    register_model("GET")(Preset(GET, GETConfig))
    for size, values in _SIZES.items():
        for patch in (1, 2, 4, 8):
            # The paper writes GET-B/2+.
            name = f"{size.rstrip('+')}/{patch}{'+' if size.endswith('+') else ''}"
            preset = {**dict(zip(names, values, strict=True)), "patch_size": patch}
            register_model(name)(Preset(GET, GETConfig, preset))


_register_sizes()
