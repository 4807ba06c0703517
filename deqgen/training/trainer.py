"""The training loop, written once.

Letters: B samples of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from deqgen.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from deqgen.training.config import TrainConfig
from deqgen.training.ema import Ema
from deqgen.training.interrupt import Interrupted, StopRequest
from deqgen.training.log import LogRow, LossLog
from deqgen.training.order import batch_indices, step_generator
from deqgen.training.schedule import learning_rate

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
# Settings that a run may be continued with changed: they leave the steps taken so far as they are.
# The length does too, except under a cosine, which is stretched over it.
MAY_CHANGE = {"images", "save_images", "log_images", "compile"}


class Objective(Protocol):
    """What to minimise over a set of examples."""

    def __len__(self) -> int:
        """Number of examples."""

    def loss(self, model: nn.Module, indices: NDArray[Any], generator: torch.Generator) -> Tensor:
        """Return the scalar loss of examples ``indices`` ``(B,)``, drawing from ``generator``."""


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is not finite. No step was taken; the last checkpoint is sound."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        ema: the averaged model, float32, in evaluation mode.
        images: images seen.
        loss: mean loss of the last row of the log.
        seconds: training time over all sessions of the run.
    """

    ema: nn.Module
    images: int
    loss: float
    seconds: float


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    directory: str | Path,
    *,
    title: str = "train",
    progress: bool = True,
) -> TrainResult:
    """Train ``model`` in place, or go on where an earlier call with this directory stopped.

    A run that is stopped and continued takes the same steps, bit for bit on one machine, as one
    that is not: order and random numbers depend on the seed and the step alone, and the checkpoint
    holds the rest.

    Args:
        model: in float32, on its device.
        objective: gives the loss of a batch.
        config: see :class:`TrainConfig`.
        directory: holds ``checkpoint.pt`` and ``log.csv``.
        title: text before the progress bar.
        progress: show the bar.

    Raises:
        CheckpointError: the checkpoint is damaged, or is of a run with other settings.
        TrainingDiverged: a loss or gradient is not finite.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written first.
        ValueError: the objective has no examples.
    """
    if len(objective) == 0:
        raise ValueError("there is nothing to train on: the objective has no examples")
    run = _Run(model, objective, config, Path(directory))
    with StopRequest() as stop, run.bar(title, progress) as bar:
        while run.images < config.images:
            run.step()
            bar.update(config.batch_size)
            if run.due(config.log_images):
                bar.set_postfix_str(f"loss {run.write_log():.4f}", refresh=False)
            if not stop.requested and run.due(config.save_images):
                run.save()
            if stop.requested:
                break
        run.finish()
    if stop.requested:
        raise Interrupted(f"stopped after {run.images} images; the checkpoint is in {directory}")
    return TrainResult(run.ema.model, run.images, run.last_loss, run.seconds)


class _Run:
    """The state of a run: all that a checkpoint holds, and what follows from it."""

    def __init__(
        self, model: nn.Module, objective: Objective, config: TrainConfig, directory: Path
    ) -> None:
        self.model = model.train()
        self.objective = objective
        self.config = config
        self.path = directory / CHECKPOINT
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.device = self.weights[0].device
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = Ema(model, half_life=config.ema_half_life, ramp=config.ema_ramp)
        self.images = 0
        self.saved_at = -1
        self._losses: list[float] = []
        self._earlier_seconds = 0.0
        if self.path.exists():
            self._load()
        self._started = time.perf_counter()
        self.log = LossLog(directory / LOG, self.images)
        self.last_loss = self.log.last_loss
        if config.compile:
            model.compile()  # where it stands, and in the way that suits the model

    @property
    def seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._started

    def due(self, interval: int) -> bool:
        """Whether the step just taken crossed a multiple of ``interval`` images."""
        return self.images // interval > (self.images - self.config.batch_size) // interval

    @contextmanager
    def bar(self, title: str, progress: bool) -> Iterator[Any]:
        total = self.config.steps * self.config.batch_size
        with tqdm(
            total=total,
            initial=min(self.images, total),
            desc=title,
            unit="image",
            disable=not progress,
            mininterval=1.0,
        ) as bar:
            yield bar

    def step(self) -> None:
        """One optimizer step, after a look at whether everything is finite."""
        config, number = self.config, self.images // self.config.batch_size
        indices = batch_indices(len(self.objective), config.batch_size, config.seed, number)
        generator = step_generator(config.seed, number)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
        ):
            loss = self.objective.loss(self.model, indices, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.weights, config.clip_norm or math.inf)
        value, size = torch.stack([loss.detach().float(), norm.float()]).tolist()  # one sync
        if not (math.isfinite(value) and math.isfinite(size)):
            raise TrainingDiverged(
                f"after {self.images} images the loss is {value} and the gradient norm {size}; no "
                f"step was taken. The batch begins with examples {indices[:8].tolist()}. Causes: "
                f"(a) the learning rate {config.learning_rate:g} is too high, (b) an example is "
                "not finite, (c) the precision is too low. The last checkpoint is sound."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.images)
        self.optimizer.step()
        self.images += config.batch_size
        self.ema.update(self.model, self.images, config.batch_size)
        self._losses.append(value)

    def write_log(self) -> float:
        """Close a row of the log; return its mean loss."""
        self.last_loss = math.fsum(self._losses) / len(self._losses)
        self._losses.clear()
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.log.write(LogRow(self.images, self.last_loss, rate, self.seconds))
        return self.last_loss

    def finish(self) -> None:
        """Save, and at the end of the run log what is left, unless there was nothing to do."""
        if self._losses and self.images >= self.config.images:
            self.write_log()
        if self.saved_at != self.images:
            self.save()

    def save(self) -> None:
        save_checkpoint(
            self.path,
            {
                "config": asdict(self.config),
                "examples": len(self.objective),
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "images": self.images,
                "seconds": self.seconds,
                "losses": self._losses,
            },
        )
        self.saved_at = self.images

    def _load(self) -> None:
        state = load_checkpoint(self.path)
        try:
            self._check_same_run(state)
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.images = self.saved_at = int(state["images"])
            self._earlier_seconds = float(state["seconds"])
            self._losses = list(state["losses"])
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(f"the checkpoint {self.path} lacks its {error.args[0]}") from None
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path} is of another model: {str(error)[:300]}") from None

    def _check_same_run(self, state: dict[str, Any]) -> None:
        ours = {**asdict(self.config), "examples": len(self.objective)}
        theirs = {**state["config"], "examples": state["examples"]}
        may_change = MAY_CHANGE - ({"images"} if self.config.decay == "cosine" else set())
        differing = [
            f"{name} was {theirs.get(name)} and is {value}"
            for name, value in ours.items()
            if name not in may_change and _plain(theirs.get(name)) != _plain(value)
        ]
        if differing:
            raise CheckpointError(
                f"the checkpoint {self.path} is of a run with other settings "
                f"({'; '.join(differing)}); choose another folder, or delete the checkpoint to "
                "start over"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
