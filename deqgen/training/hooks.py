"""What else happens during a training: samples, an evaluation, whatever takes the average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import nn

RESERVED = {"images", "loss", "learning_rate", "gradient_norm", "seconds", "skipped_steps"}


@dataclass(frozen=True)
class Moment:
    """A point of a training, between two steps.

    Attributes:
        images: images seen.
        model: the average: float32, in evaluation mode, the same in every process and whole: with
            ``config.shard``, a copy for this moment. To be left as it is.
        accelerator: of this process.
        directory: of the run.
    """

    images: int
    model: nn.Module
    accelerator: Accelerator
    directory: Path


@dataclass(frozen=True)
class Hook:
    """Something to do now and then.

    Every process calls it at the first step that passes a multiple of ``images``, and at the end of
    the run, after the checkpoint of that moment is written. A run that is stopped while its hooks
    are called calls them again when it goes on; but those of the end of a run are not called for
    that moment if the run is then given a greater length. The global random numbers are put back
    after it.

    The first process may work while the others return at once and wait for it, for two days at
    most. An error in any process ends the run in all of them, with its text.

    Args:
        images: images between two calls.
        call: what to do. The numbers that the first process's call returns become a row of the
            statistics and go to the trackers.

    Raises:
        ValueError: ``images`` below 1.
    """

    images: int
    call: Callable[[Moment], Mapping[str, float] | None]

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images of a hook must be at least 1, got {self.images}")

    def __call__(self, moment: Moment) -> dict[str, float]:
        """Call it; check what it returns.

        Raises:
            ValueError: a number with the name of one of the training's own.
        """
        returned = self.call(moment) or {}
        if taken := RESERVED & returned.keys():
            raise ValueError(f"a hook may not return {', '.join(sorted(taken))}: name it otherwise")
        return {name: float(value) for name, value in returned.items()}
