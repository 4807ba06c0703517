"""Training: one loop, and what it is asked to minimise.

Mental model, in five lines:
1. An ``Objective`` gives the loss of examples: ``Distillation`` of pairs, ``Denoising`` of images.
2. ``train(model, objective, config, directory)`` is the only loop; it counts in images.
3. Order, noise and z0 of a step depend on (seed, step) alone: a resumed run is the same run.
4. ``Ema`` averages the weights in float32, with a half-life in images; one samples from it.
5. A checkpoint is written beside the old one and renamed: a kill leaves one of the two, whole.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deqgen.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
    from deqgen.training.config import TrainConfig
    from deqgen.training.denoising import Denoising
    from deqgen.training.distillation import Distillation
    from deqgen.training.ema import Ema
    from deqgen.training.interrupt import Interrupted
    from deqgen.training.jacobian import jacobian_penalty
    from deqgen.training.losses import TrajectoryLoss
    from deqgen.training.trainer import Objective, TrainingDiverged, TrainResult, train

__all__ = [
    "CheckpointError",
    "Denoising",
    "Distillation",
    "Ema",
    "Interrupted",
    "Objective",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "TrajectoryLoss",
    "jacobian_penalty",
    "load_checkpoint",
    "save_checkpoint",
    "train",
]

# The module of each name, imported when the name is first asked for: torch takes seconds, for which
# the settings alone (deqgen.training.config), and so `deqgen distill --help`, need not wait.
_PLACES = {
    "CheckpointError": "checkpoint",
    "Denoising": "denoising",
    "Distillation": "distillation",
    "Ema": "ema",
    "Interrupted": "interrupt",
    "jacobian_penalty": "jacobian",
    "load_checkpoint": "checkpoint",
    "Objective": "trainer",
    "save_checkpoint": "checkpoint",
    "train": "trainer",
    "TrainConfig": "config",
    "TrainingDiverged": "trainer",
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
