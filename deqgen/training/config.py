"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

PRECISIONS = ("float32", "bfloat16", "float16")
DECAYS = ("constant", "cosine", "inverse-sqrt")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are the published GET recipe (arXiv 2401.08639, appendix).

    Args:
        images: length of the run, in training images (examples seen, repeats counted).
        batch_size: examples a step, those of all processes together.
        microbatch: examples in one forward pass of one process; divides the batch size. A step's
            batch is cut into parts of this size, the processes take them in turn, and gradients
            accumulate: the memory of one part, and the same training (to rounding) however many
            processes there are. None for one part a process.
        optimizer: AdamW; or Muon for the matrices of the blocks and AdamW for the rest
            (deqgen.training.optimizers says which are which).
        learning_rate: peak rate.
        betas: of AdamW.
        weight_decay: decoupled, of all weights.
        warmup_images: images over which the rate rises linearly from zero.
        decay: what the rate does after warm-up: stay; follow half a cosine down to zero at the end;
            or fall with the inverse square root of the images seen, from the reference images on.
        reference_images: where the inverse square root sets in.
        clip_norm: gradients of a larger 2-norm are scaled down to it; None for no clipping.
        ema_half_life: images after which a weight counts half in the average; the default is the
            published rate of 0.9999 a step at batch 128.
        ema_ramp: early on the half-life is at most this share of the images seen, so that the
            average forgets the initial weights (EDM, arXiv 2206.00364, appendix F); 0 for no ramp.
        ema_power: instead of a half-life, weight the past by this power of the images seen (gamma
            of EDM2, arXiv 2312.02696, section 3): the average is then over a fixed share of the
            run. 6.94 is the paper's relative width 0.10, 16.97 its 0.05.
        precision: of the matrix products; weights, optimizer and average stay float32. float16
            scales the loss, and needs a GPU.
        compile: compile the model: of a DEQ-UNet the cell, of others all of it.
        shard: several processes each keep a part of the weights, gradients, optimizer state and
            average, in place of all of it, and exchange more. The files are the same, so that a run
            may go on without it. For AdamW, in float32 or bfloat16.
        save_images: images between checkpoints.
        keep_checkpoints: how many of the newest checkpoints stay.
        log_images: images a row of the statistics.
        seed: of the order, the noise and z0.

    Raises:
        ValueError: a value outside its range or not finite, or two that exclude each other.
    """

    images: int
    batch_size: int = 128
    microbatch: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_images: int = 0
    decay: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    reference_images: int = 1
    clip_norm: float | None = None
    ema_half_life: int = 887_000
    ema_ramp: float = 0.0
    ema_power: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    shard: bool = False
    save_images: int = 100_000
    keep_checkpoints: int = 2
    log_images: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        from deqgen.teachers.names import unknown

        at_least_one = ("images", "batch_size", "reference_images", "ema_half_life")
        for name in (*at_least_one, "save_images", "keep_checkpoints", "log_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_numbers()
        if self.ema_power is not None and self.ema_ramp:
            raise ValueError("ema_ramp belongs to a half-life; ema_power needs none")
        choices = (("precision", PRECISIONS), ("decay", DECAYS), ("optimizer", OPTIMIZERS))
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(unknown(name, getattr(self, name), allowed))
        if self.shard and self.optimizer == "muon":
            raise ValueError(
                "optimizer 'muon' makes whole matrices orthogonal, and shard leaves no process a "
                "whole one; use 'adamw'"
            )
        if self.shard and self.precision == "float16":
            raise ValueError(
                "shard does not go with precision 'float16', whose scaling looks for overflows in "
                "the gradients of one process; use 'bfloat16'"
            )
        self.parts(1)

    def _check_numbers(self) -> None:
        """Refuse numbers outside their range; infinity and NaN are outside each."""
        for name in ("weight_decay", "warmup_images", "ema_ramp", "seed"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                wanted = "not be negative" if value < 0 else "be finite"
                raise ValueError(f"{name} must {wanted}, got {value}")
        if self.seed >= 2**63:  # what torch's generators take
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        for name in ("learning_rate", "clip_norm", "ema_power"):
            value = getattr(self, name)
            if not (value is None or 0 < value < math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; the last one may go past ``images``."""
        return -(-self.images // self.batch_size)

    def parts(self, processes: int) -> int:
        """Parts that the batch of a step is cut into, a multiple of ``processes``.

        Raises:
            ValueError: the batch cannot be cut so; the numbers are named.
        """
        if self.microbatch is None:
            size, share = processes, f"{processes} processes"
        elif self.microbatch < 1:
            raise ValueError(f"microbatch must be at least 1, got {self.microbatch}")
        else:
            size = self.microbatch * processes
            share = f"microbatch {self.microbatch} x {processes} " + (
                "process" if processes == 1 else "processes"
            )
        if self.batch_size % size:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by {share} = {size}")
        return processes if self.microbatch is None else self.batch_size // self.microbatch
