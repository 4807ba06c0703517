"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PRECISIONS = ("float32", "bfloat16")
DECAYS = ("constant", "cosine", "inverse-sqrt")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are the published GET recipe (arXiv 2401.08639, appendix).

    Args:
        images: length of the run, in training images (examples seen, repeats counted).
        batch_size: examples a step.
        learning_rate: peak rate of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_images: images over which the rate rises linearly from zero.
        decay: what the rate does after warm-up: stay; follow half a cosine down to zero at the end;
            or fall with the inverse square root of the images seen, from ``reference_images`` on.
        reference_images: where the inverse square root sets in.
        clip_norm: gradients of a larger 2-norm are scaled down to it; ``None`` for no clipping.
        ema_half_life: images after which a weight counts half in the average; the default is the
            published rate of 0.9999 a step at batch 128.
        ema_ramp: early on the half-life is at most this share of the images seen, so that the
            average forgets the initial weights (EDM, arXiv 2206.00364, appendix F); 0 for no ramp.
        precision: of the matrix products; weights, optimizer and average stay float32.
        compile: call ``model.compile()``: a DEQ-UNet compiles its cell, other models themselves.
        save_images: images between checkpoints.
        log_images: images a row of the log.
        seed: of the order, the noise and z0.

    Raises:
        ValueError: a value outside its range.
    """

    images: int
    batch_size: int = 128
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_images: int = 0
    decay: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    reference_images: int = 1
    clip_norm: float | None = None
    ema_half_life: int = 887_000
    ema_ramp: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    save_images: int = 100_000
    log_images: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one = ("images", "batch_size", "reference_images", "ema_half_life")
        for name in (*at_least_one, "save_images", "log_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_images", "ema_ramp", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        for name, allowed in (("precision", PRECISIONS), ("decay", DECAYS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; the last one may go past ``images``."""
        return -(-self.images // self.batch_size)
