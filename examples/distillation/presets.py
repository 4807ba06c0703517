"""Sizes of the flagship runs: see distill_cifar.py and distill_imagenet.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from deqgen.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Args:
        get: name of the student.
        pairs: noise/image pairs to make.
        images: length of each training.
        evaluate: images that quality is measured on, no more than there are pairs.
        held_out: noises outside the pairs, given to teacher and students for pair_l1 and pictures;
            no more than there are pairs.
        batch: images at a time, for the teacher and for sampling.
        shard: pairs a file; an interruption loses less than one of them.
        recipe: how to train; its ``images``, ``seed`` and ``precision`` are those of the run.
    """

    get: str
    pairs: int
    images: int
    evaluate: int
    held_out: int
    batch: int
    shard: int
    recipe: TrainConfig

    def training(self, *, images: int, **run: Any) -> TrainConfig:
        """The recipe for one run; a run shorter than a batch takes one smaller batch."""
        batch_size = min(self.recipe.batch_size, images)
        return replace(self.recipe, images=images, batch_size=batch_size, **run)


# A short run cannot afford the published rate of 1e-4. At a constant rate, with an average over a
# share of the run (EDM2's power function), a run stopped early is the shorter run.
SHORT = TrainConfig(
    images=1,
    batch_size=32,
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    warmup_images=2_048,
    clip_norm=1.0,
    ema_power=6.94,
    save_images=4_096,
    log_images=1_024,
)

CIFAR = {
    "smoke": Preset(
        get="GET-N/8",
        pairs=32,
        images=256,
        evaluate=32,
        held_out=16,
        batch=32,
        shard=32,
        recipe=replace(SHORT, warmup_images=64, save_images=64, log_images=64),
    ),
    "demo": Preset(
        get="GET-N/4",
        pairs=5_120,
        images=24_576,
        evaluate=3_072,
        held_out=128,
        batch=128,
        shard=512,
        recipe=SHORT,
    ),
    "paper": Preset(
        get="GET-B/2",
        pairs=1_000_000,
        images=102_400_000,
        evaluate=50_000,
        held_out=128,
        batch=128,
        shard=4_096,
        recipe=TrainConfig(images=1, save_images=640_000, log_images=12_800),  # as published
    ),
}

# ImageNet 64x64 with the same counts. The paper preset has twice the batch, as the paper's own
# class-conditional runs, and patches of 4 for four times the pixels: as many tokens as on CIFAR-10.
IMAGENET = {
    "smoke": replace(CIFAR["smoke"], images=128),
    "demo": CIFAR["demo"],
    "paper": replace(
        CIFAR["paper"],
        get="GET-B/4",
        batch=64,
        recipe=replace(CIFAR["paper"].recipe, batch_size=256),
    ),
}
