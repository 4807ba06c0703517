"""Trackers: where a run's statistics go besides its own file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deqgen.teachers.names import unknown
from deqgen.training.config import TrainConfig

# The package that each needs, and what installs it.
TRACKERS = {"tensorboard": "'deqgen[tensorboard]'", "wandb": "wandb"}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that there is not.

    Raises:
        ValueError: an unknown name; the nearest one is named.
        ImportError: a tracker that is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(unknown("tracker", name, TRACKERS))
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise ImportError(f"the tracker {name} is not installed: pip install {TRACKERS[name]}")


def start_trackers(accelerator: Accelerator, config: TrainConfig, directory: Path) -> None:
    """Begin a run in each; ``accelerator.end_training()`` ends it."""
    settings: dict[str, Any] = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in asdict(config).items()
    }
    wandb = {"dir": str(directory), "name": directory.name}
    accelerator.init_trackers("deqgen", config=settings, init_kwargs={"wandb": wandb})
