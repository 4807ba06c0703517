"""Training: one loop, and what it is asked to minimise.

Mental model, in five lines:
1. An ``Objective`` gives the loss of examples: ``Distillation`` of pairs, ``Denoising`` of images.
2. ``train(model, objective, config, directory)`` is the only loop; it counts in images.
3. Order, noise and z0 of a step depend on (seed, step) alone: a resumed run is the same run.
4. ``Ema`` averages the weights in float32, with a half-life in images; one samples from it.
5. ``Checkpoints`` are numbered folders, whole or not there: a kill leaves the newest whole one.
"""

from deqgen.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    CheckpointWarning,
    Loaded,
    load_checkpoint,
    save_checkpoint,
)
from deqgen.training.config import TrainConfig
from deqgen.training.denoising import Denoising
from deqgen.training.distillation import Distillation
from deqgen.training.ema import Ema
from deqgen.training.interrupt import Interrupted
from deqgen.training.jacobian import jacobian_penalty
from deqgen.training.losses import TrajectoryLoss
from deqgen.training.perceptual import PerceptualDistance
from deqgen.training.trainer import Objective, TrainingDiverged, TrainResult, train

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Checkpoints",
    "Denoising",
    "Distillation",
    "Ema",
    "Interrupted",
    "Loaded",
    "Objective",
    "PerceptualDistance",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "TrajectoryLoss",
    "jacobian_penalty",
    "load_checkpoint",
    "save_checkpoint",
    "train",
]
