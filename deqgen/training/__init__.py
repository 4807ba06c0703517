"""Training: one loop, and what it is asked to minimise.

Mental model, in six lines:
1. An ``Objective`` gives the loss of examples: ``Distillation`` of pairs, ``Denoising`` of images.
2. ``train(model, objective, config, directory)`` is the only loop, in one process or, under
   torchrun, in many; it counts in images, and a batch is cut into parts that gradients add up over.
3. Order, noise and z0 are functions of (seed, step, part): a resumed run is the same run.
4. ``Ema`` averages the weights in float32, over a half-life in images or a share of the run.
5. ``Checkpoints`` are numbered folders, whole or not there; ``stats.jsonl`` says how it went.
6. A ``Hook`` is called with the average now and then: samples, an evaluation.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from deqgen.training.distributed import make_accelerator
    from deqgen.training.divergence import TrainingDiverged
    from deqgen.training.ema import Ema
    from deqgen.training.hooks import Hook, Moment
    from deqgen.training.interrupt import Interrupted
    from deqgen.training.jacobian import jacobian_penalty
    from deqgen.training.losses import TrajectoryLoss
    from deqgen.training.objective import Objective
    from deqgen.training.perceptual import PerceptualDistance
    from deqgen.training.stats import read_stats
    from deqgen.training.trainer import TrainResult, train

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Checkpoints",
    "Denoising",
    "Distillation",
    "Ema",
    "Hook",
    "Interrupted",
    "Loaded",
    "Moment",
    "Objective",
    "PerceptualDistance",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "TrajectoryLoss",
    "jacobian_penalty",
    "load_checkpoint",
    "make_accelerator",
    "read_stats",
    "save_checkpoint",
    "train",
]

# The module of each name, imported when the name is first asked for: torch takes seconds, for which
# the settings alone (deqgen.training.config), and so `deqgen distill --help`, need not wait.
_PLACES = {
    "CheckpointError": "checkpoint",
    "Checkpoints": "checkpoint",
    "CheckpointWarning": "checkpoint",
    "Denoising": "denoising",
    "Distillation": "distillation",
    "Ema": "ema",
    "Hook": "hooks",
    "Interrupted": "interrupt",
    "jacobian_penalty": "jacobian",
    "load_checkpoint": "checkpoint",
    "Loaded": "checkpoint",
    "make_accelerator": "distributed",
    "Moment": "hooks",
    "Objective": "objective",
    "PerceptualDistance": "perceptual",
    "read_stats": "stats",
    "save_checkpoint": "checkpoint",
    "train": "trainer",
    "TrainConfig": "config",
    "TrainingDiverged": "divergence",
    "TrainResult": "trainer",
    "TrajectoryLoss": "losses",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'deqgen.training' has no attribute {name!r}")
    value = getattr(import_module(f"deqgen.training.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
