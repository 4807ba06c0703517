"""Multi-scale equilibrium U-Net: feature maps of all resolutions, solved for together.

It is a deep equilibrium model (Bai et al. 2019, arXiv 1909.01377) whose state is one feature map a
resolution (MDEQ, Bai et al. 2020, arXiv 2006.08656); the cell is one pass of a small diffusion
U-Net (DDPM, Ho et al. 2020, arXiv 2006.11239). The noise enters through an encoder that runs once;
class and noise level scale and shift the norms inside the blocks.

What keeps the cell a tame map:

- Each map of the state ends in a group norm, as in MDEQ, so the cell maps into a bounded set. It is
  continuous, so a fixed point exists whatever the weights (Brouwer).
- The injection u is normalised too, and what blocks and resampling add begins small. So the cell
  begins close to z -> norm(z + u), which leads to z = u and halves the distance to it each time;
  with the rest, plain iteration contracts by about 0.6. No weight but the last map's is zero.

Where it differs from MDEQ: (1) the scales are fused along a U-Net's path and not all with all;
(2) the injection reaches every scale; (3) pre-norm blocks with SiLU; (4) no dropout, weight norm or
attention (every pixel soon hears of every other); (5) all maps are decoded, at the finest scale.

Letters: B samples, C channels, H and W pixels, P patch side, S scales, D_s = D * 2^s channels and
R_s = H / (P * 2^s) side of the map at scale s (0 is the finest), E embedding, K supervised states.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from deqgen.gradients import GradientEstimator, State
from deqgen.layers import (
    Generators,
    LabelEmbedding,
    NoiseLevelEmbedding,
    ResidualBlock,
    ResidualBlocks,
    initialize_transformer,
    normal_start,
)
from deqgen.layers.patches import full_precision
from deqgen.models.equilibrium import EquilibriumConfig, EquilibriumModel, check_state
from deqgen.models.protocol import GeneratorOutput, Stopping
from deqgen.models.registry import Preset, register_model
from deqgen.models.unet_cell import Maps, UNetCell
from deqgen.teachers.edm import Preconditioning
from deqgen_solvers import Solver

_SMALL = 0.2  # of Xavier's range, for what is added to a map


@dataclass(frozen=True, kw_only=True)
class DEQUNetConfig(EquilibriumConfig):
    """Architecture and iteration of a :class:`DEQUNet`; the defaults are DEQ-UNet-T.

    Args:
        image_size: side of the square images, a multiple of ``patch_size * 2**(scales - 1)``.
        channels: channels of the images.
        patch_size: pixels of an image, per side, to one of the finest map; 2 quarters the cost.
        num_classes: classes the model is conditional on; None for an unconditional model.
        width: channels of the finest map (D), a multiple of ``groups``; each coarser one has twice
            as many, so that a convolution costs the same at every scale.
        scales: maps of the state (S).
        depth: residual blocks a scale in the encoder of the noise, which runs once.
        blocks: residual blocks a scale in the cell on the way down, and as many on the way up.
        groups: groups of each group norm.

    Of :class:`EquilibriumConfig`. Estimators that iterate by themselves ("unrolled",
    "stochastic-jfb", "reversible") go well with ``solver="picard"``.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: one out of its range, or sizes that do not fit each other.
    """

    patch_size: int = 1
    width: int = 32
    scales: int = 4
    depth: int = 1
    blocks: int = 1
    groups: int = 8
    max_steps: int = 12
    solver: str | Solver[Any] = "anderson"
    gradient: str | GradientEstimator = "phantom"
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        coarsest = self.patch_size * 2 ** (self.scales - 1)
        if self.image_size % coarsest:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of patch_size * 2**(scales - 1) "
                f"= {coarsest} (patch_size={self.patch_size}, scales={self.scales})."
            )
        if self.width % self.groups:
            raise ValueError(f"width={self.width} must be a multiple of groups={self.groups}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map (D_s), finest first."""
        return tuple(self.width * 2**scale for scale in range(self.scales))

    @property
    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(D_s, R_s, R_s) of each map, finest first."""
        finest = self.image_size // self.patch_size
        return tuple(
            (width, finest // 2**scale, finest // 2**scale)
            for scale, width in enumerate(self.widths)
        )


class Injection(nn.Module):
    """Noise to one normalised map a scale, computed once for all iterations."""

    def __init__(self, config: DEQUNetConfig) -> None:
        super().__init__()
        c, widths = config, config.widths
        self.stem = nn.Conv2d(c.channels * c.patch_size**2, c.width, 3, padding=1)
        self.levels = nn.ModuleList(ResidualBlocks(c.depth, width, c.groups) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(f, g, 2, stride=2) for f, g in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(c.groups, width) for width in widths)
        self.patch_size = c.patch_size

    def forward(self, noise: Tensor, rows: Iterator[Tensor]) -> Maps:
        """``noise`` (B, C, H, W) to S of (B, D_s, R_s, R_s)."""
        x = self.stem(F.pixel_unshuffle(noise, self.patch_size))  # (B, D, R, R)
        injected = []
        for scale, (level, norm) in enumerate(zip(self.levels, self.norms, strict=True)):
            x = self.down[scale - 1](x) if scale else x  # (B, D_s, R_s, R_s)
            x = level(x, rows)  # (B, D_s, R_s, R_s)
            injected.append(norm(x))  # (B, D_s, R_s, R_s)
        return tuple(injected)


class MapDecoder(nn.Module):
    """All maps of a state to an image: gathered at the finest scale, then one convolution."""

    def __init__(self, config: DEQUNetConfig) -> None:
        super().__init__()
        c = config
        self.gather = nn.ModuleList(nn.Conv2d(width, c.width, 1) for width in c.widths[1:])
        self.norm = nn.GroupNorm(c.groups, c.width)
        self.conv = nn.Conv2d(c.width, c.channels * c.patch_size**2, 3, padding=1)
        self.patch_size = c.patch_size

    def forward(self, z: Maps) -> Tensor:
        """S of (B, D_s, R_s, R_s) to (B, C, H, W)."""
        side = z[0].shape[-2:]
        x = z[0]  # (B, D, R, R)
        for gather, coarse in zip(self.gather, z[1:], strict=True):
            x = x + F.interpolate(gather(coarse), side)  # (B, D, R, R), nearest neighbours
        # The last map outside autocast: bfloat16 has fewer levels in [-1, 1] than 8-bit images.
        with full_precision(x.device.type):
            pixels = self.conv(F.silu(self.norm(x)))  # (B, C*P*P, R, R)
        return F.pixel_shuffle(pixels, self.patch_size)  # (B, C, H, W)


class DEQUNet(EquilibriumModel):
    """Noise to image through the equilibrium of a U-Net.

    By default the solver runs without gradients, and five damped evaluations from its answer carry
    them (phantom gradient); in evaluation the image is that of f(z) for the iterate z of lowest
    residual, per sample.

    Args:
        config: sizes and iteration.
        generator: source of the initial weights; default: a CPU generator with seed 0.

    Attributes:
        deq: the :class:`DEQ` layer; set ``deq.solver``, ``deq.gradient`` or ``deq.compact``.
        cell: the :class:`UNetCell`.
    """

    architecture: ClassVar[str] = "DEQ-UNet"
    references: ClassVar[tuple[str, ...]] = ("bai2020multiscale", "bai2019deep", "ho2020denoising")
    config: DEQUNetConfig
    initial_draw: Tensor

    def __init__(self, config: DEQUNetConfig, *, generator: Generator | None = None) -> None:
        super().__init__()
        self.config = c = config
        device = torch.get_default_device()
        embedding = 4 * c.width
        classes = c.num_classes + c.noise_level if c.num_classes else 0
        # On meta, so that no constructor draws weights that are drawn again below.
        with torch.device("meta"):
            self.label_embedder = LabelEmbedding(classes, embedding) if classes else None
            self.noise_embedder = (
                NoiseLevelEmbedding(embedding, embedding) if c.noise_level else None
            )
            self.injection = Injection(c)
            self.cell = UNetCell(c)
            self.decoder = MapDecoder(c)
            self.row_sizes = [block.row_size for block in self._blocks()]
            conditional = classes or c.noise_level
            self.to_rows = nn.Linear(embedding, sum(self.row_sizes)) if conditional else None
            unknowns = sum(math.prod(shape) for shape in c.state_shapes)
            self.register_buffer("initial_draw", torch.empty(1, unknowns), persistent=False)
        self.deq = self.layer(self.iterate)
        self.to_empty(device=device)
        self.initialize(generator)

    @torch.no_grad()
    def initialize(self, generator: Generator | None = None) -> None:
        """Draw the weights and write the fixed tensors; after ``to_empty`` on a meta model too.

        Xavier-uniform, and small where something is added to a map; the last convolution is zero.
        """
        if self.initial_draw.is_meta:
            return
        initialize_transformer(self, generator or Generator().manual_seed(0))
        for block in self._blocks():
            block.conv2.weight.mul_(_SMALL)
        for resampling in (*self.cell.down, *self.cell.up):
            cast(nn.Conv2d, resampling).weight.mul_(_SMALL)
        if self.label_embedder is not None:
            self.label_embedder.embedding_table.weight.mul_(50)  # 0.02 to 1, as SiLU follows
        nn.init.zeros_(self.decoder.conv.weight)
        self.write_fixed_buffers()

    @torch.no_grad()
    def write_fixed_buffers(self) -> None:
        """Write the state that samples without a generator start from."""
        self.initial_draw.copy_(normal_start(1, self.initial_draw.shape[1:], device="cpu"))

    def stages(self) -> Sequence[nn.Module]:
        """The blocks of the noise's encoder."""
        return [block for level in self.injection.levels for block in cast(ResidualBlocks, level)]

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the cell where it stands; the arguments are those of ``torch.compile``.

        The cell is nearly all of the work. All its applications at once, in one graph, take the
        compiler many minutes.
        """
        self.cell.compile(*args, **options)

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

        Args:
            z0: S maps ``(B, D_s, R_s, R_s)``; their shapes are ``config.state_shapes``.

        Raises:
            ValueError: noise, label, z0, sigma or max_steps do not fit the model.
            TypeError: noise, sigma or z0 that are not floating point, or a label not int64.
        """
        self.check_inputs(noise, label, sigma)
        at = None if sigma is None else Preconditioning.at(sigma)
        x = noise if at is None else at.network_input(noise)  # (B, C, H, W)
        args = self.embed(x, label, None if at is None else at.c_noise)  # see UNetCell.forward
        start = self.initial_state(noise, generator, z0)  # S of (B, D_s, R_s, R_s)
        equilibrium = self.solve(
            args, start, max_steps=max_steps, tol=tol, solver=solver, trace=trace
        )
        images = self.decode(equilibrium.states)  # K of (B, C, H, W)
        if at is not None:
            images = tuple(at.denoised(noise, image) for image in images)  # K of (B, C, H, W)
        return GeneratorOutput(images[-1], images, equilibrium)

    def embed(
        self, noise: Tensor, label: Tensor | None = None, level: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """What the cell takes besides the state, computed once for all iterations.

        Args:
            noise: ``(B, C, H, W)``, of about unit variance.
            label: as for :meth:`forward`.
            level: ``(B,)``, EDM's c_noise, for a model that takes noise levels.

        Returns:
            The arguments of ``UNetCell.forward``, one row a sample in each.
        """
        told = [
            embedder(value)  # (B, E)
            for embedder, value in ((self.label_embedder, label), (self.noise_embedder, level))
            if embedder is not None and value is not None
        ]
        rows: tuple[Tensor, ...] = ()
        if self.to_rows is not None:
            rows = torch.split(self.to_rows(F.silu(sum(told))), self.row_sizes, dim=1)  # (B, 2*D_s)
        ahead = iter(rows)
        noise = noise.to(self.initial_draw.dtype)  # (B, C, H, W)
        injected = self.injection(noise, ahead)  # S of (B, D_s, R_s, R_s)
        return (*injected, *ahead)

    def iterate(self, z: Maps, *args: Tensor) -> Maps:
        """The cell f, with the tensors that ``embed`` returned: S maps to S maps."""
        image: Maps = self.cell(z, *args)  # S of (B, D_s, R_s, R_s)
        return image

    def decode(self, states: tuple[Maps, ...]) -> tuple[Tensor, ...]:
        """K states to K images (B, C, H, W), in one batch."""
        if len(states) == 1:
            return (self.decoder(states[0]),)  # (B, C, H, W)
        stacked = tuple(torch.cat(maps) for maps in zip(*states, strict=True))  # S of (K*B, ...)
        return tuple(self.decoder(stacked).chunk(len(states)))  # K of (B, C, H, W)

    def initial_state(
        self, noise: Tensor, generator: Generators = None, z0: State | None = None
    ) -> Maps:
        """Return z0, S maps: as given, or from ``generator``, or the recorded draw."""
        batch, dtype, shapes = noise.shape[0], self.initial_draw.dtype, self.config.state_shapes
        if z0 is not None:
            if not isinstance(z0, tuple | list) or len(z0) != len(shapes):
                got = f"{len(z0)}" if isinstance(z0, tuple | list) else type(z0).__name__
                raise TypeError(f"z0 must be a tuple of {len(shapes)} maps, got {got}.")
            for scale, (given, shape) in enumerate(zip(z0, shapes, strict=True)):
                check_state(f"z0[{scale}]", given, (batch, *shape))
            return tuple(given.to(noise.device, dtype) for given in z0)
        if generator is None:
            flat = self.initial_draw.expand(batch, -1)  # (B, N)
        else:
            size = self.initial_draw.shape[1:]
            flat = normal_start(batch, size, generator, device=noise.device, dtype=dtype)
        parts = torch.split(flat, [math.prod(shape) for shape in shapes], dim=1)
        return tuple(p.reshape(batch, *shape) for p, shape in zip(parts, shapes, strict=True))

    def _blocks(self) -> list[ResidualBlock]:
        """All residual blocks in the order in which a pass goes through them."""
        up = reversed(list(self.cell.decoder))
        levels = (*self.injection.levels, *self.cell.encoder, *up)
        return [block for level in levels for block in cast(ResidualBlocks, level)]


# width, depth, blocks.
_SIZES = {
    "DEQ-UNet-T": (32, 1, 1),
    "DEQ-UNet-S": (64, 1, 1),
    "DEQ-UNet-B": (96, 2, 1),
}


def _register_sizes() -> None:
    register_model("DEQ-UNet")(Preset(DEQUNet, DEQUNetConfig))
    for name, values in _SIZES.items():
        preset = dict(zip(("width", "depth", "blocks"), values, strict=True))
        register_model(name)(Preset(DEQUNet, DEQUNetConfig, preset))


_register_sizes()
