"""The learning rate, as a function of the images seen alone: a resumed run needs no more."""

from __future__ import annotations

import math

from deqgen.training.config import TrainConfig


def learning_rate(config: TrainConfig, images: int) -> float:
    """Rate of the step that starts after ``images`` images.

    The first step of a warm-up does not have rate zero: it is counted from its own end.
    """
    warmup = min((images + config.batch_size) / max(config.warmup_images, 1), 1.0)
    if config.decay == "cosine":
        progress = min(images / config.images, 1.0)
        shape = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif config.decay == "inverse-sqrt":
        shape = min(config.reference_images / max(images, 1), 1.0) ** 0.5
    else:
        shape = 1.0
    return config.learning_rate * warmup * shape
