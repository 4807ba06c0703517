"""The state of a run: all that a checkpoint holds, and what follows from it."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from deqgen.training.agreement import as_one, by_each, by_first
from deqgen.training.checkpoint import CheckpointError, Checkpoints, Loaded
from deqgen.training.config import TrainConfig
from deqgen.training.divergence import (
    FOLDER,
    TrainingDiverged,
    explain,
    gather_batch,
    last_checkpoint,
    write_batch,
)
from deqgen.training.ema import Ema
from deqgen.training.hooks import Hook, Moment
from deqgen.training.interrupt import StopRequest
from deqgen.training.objective import Objective
from deqgen.training.optimizers import check_optimizer
from deqgen.training.parallel import begin_alike, moving_buffers, spread
from deqgen.training.random_state import random_state, restore_random_state, set_apart
from deqgen.training.same_run import differences, identity
from deqgen.training.sharding import gathered, optimizer_parts, parts, share_out, whole_copy
from deqgen.training.stats import Stats
from deqgen.training.stepper import Outcome, Stepper

STATS = "stats.jsonl"


class Run:
    """A training between two of its steps."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: TrainConfig,
        directory: Path,
        accelerator: Accelerator,
    ) -> None:
        self.model = model.train()
        self.config = config
        self.directory = directory
        self.accelerator = accelerator
        self.images = 0
        self.signal: int | None = None
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._skipped = 0
        self._earlier_seconds = 0.0
        check_optimizer(model, config)
        begin_alike(model, accelerator)
        self.ema = Ema(
            model,
            half_life=config.ema_half_life,
            ramp=config.ema_ramp,
            power=config.ema_power,
        )
        if config.compile:
            model.compile()  # where it stands, and in the way that suits the model
        self.stepper = Stepper(model, objective, config, accelerator)
        share_out(self.ema.model, like=model)
        self.identity = identity(config, self.stepper.parts, len(objective))
        self.checkpoints = Checkpoints(directory, keep=config.keep_checkpoints)
        self._begin()
        self._started = time.perf_counter()
        # The first process's; what the others get is how it began, and is never asked.
        self._stats = by_first(accelerator, self._tidied)
        self._buffers = moving_buffers(model)

    @property
    def seconds(self) -> float:
        """Training time over all sessions of the run."""
        return self._earlier_seconds + time.perf_counter() - self._started

    @property
    def finished(self) -> bool:
        return self.images >= self.config.images

    @property
    def last_loss(self) -> float:
        """Mean loss of the last row of the statistics."""
        return by_first(self.accelerator, lambda: self._stats.last_loss)

    def due(self, interval: int) -> bool:
        """Whether the last step crossed a multiple of ``interval`` images, or ended the run."""
        before = self.images - self.config.batch_size
        return before >= 0 and (self.images // interval > before // interval or self.finished)

    def step(self, stop: StopRequest) -> None:
        """One optimizer step, unless something is not finite; then the run ends."""
        before = random_state(self.stepper.device)
        buffers = {name: buffer.clone() for name, buffer in self._moving()}
        with as_one(self.accelerator):
            outcome = self.stepper.step(self.images, stop)
        if not (outcome.taken or outcome.skipped):
            self._put_back(buffers)
            self._diverge(outcome, before)
        self.images += self.config.batch_size
        self.ema.update(self.model, self.images, self.config.batch_size)
        self.signal = outcome.signal
        self._losses.append(outcome.loss)
        if outcome.skipped:
            self._skipped += 1
        else:
            self._norms.append(outcome.gradient_norm)

    def log(self) -> float:
        """Close a row of the statistics; return its mean loss."""
        row = {
            "loss": _mean(self._losses),
            "learning_rate": float(self.stepper.optimizers[0].param_groups[0]["lr"]),
            "gradient_norm": _mean(self._norms),
            "seconds": round(self.seconds, 3),
        }
        if self.stepper.scaler.is_enabled():
            row["skipped_steps"] = self._skipped
        self._losses.clear()
        self._norms.clear()
        self._record(row)
        return row["loss"]

    def call(self, hooks: Sequence[Hook]) -> None:
        """Call the hooks that are due, unless that was done before the run was stopped.

        Raises:
            Exception: of a hook in any process, in every process.
        """
        hooks = [hook for hook in hooks if self.due(hook.images)]
        if not hooks or by_first(self.accelerator, lambda: self._stats.hooks_ran_at) >= self.images:
            return
        moment = Moment(self.images, self.whole_ema(), self.accelerator, self.directory)
        before = random_state(self.stepper.device)
        row: dict[str, float] = {}
        for hook in hooks:
            row.update(by_each(self.accelerator, partial(hook, moment)))
        restore_random_state(before, self.stepper.device)
        self._record({**row, "seconds": round(self.seconds, 3)})

    def whole_ema(self) -> nn.Module:
        """The average, the same in every process: a copy if the weights are in parts."""
        spread(self.ema.model.buffers(), self.accelerator)
        return whole_copy(self.ema.model)

    def save(self) -> None:
        """Write a checkpoint; all processes wait for the first.

        Raises:
            OSError: the disk is full or not writable, in every process; the old one is untouched.
        """
        content = self._content(random_state(self.stepper.device))

        def write() -> None:
            self._stats.flush()
            self.checkpoints.save(self.images, *content)

        by_first(self.accelerator, write)

    def _content(
        self, random: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Tensor], nn.Module]:
        """What the first process writes to a checkpoint, whole; see :meth:`Checkpoints.save`."""
        keep = self.accelerator.is_main_process
        weights = gathered(self.model.state_dict(), keep)
        return self._state(random), weights, whole_copy(self.ema.model, keep=keep, on_cpu=True)

    def _record(self, row: Mapping[str, float]) -> None:
        """Write a row, and tell the trackers; an error of the first process is one of all."""

        def record() -> None:
            self._stats.write({"images": self.images, **row})
            self.accelerator.log(dict(row), step=self.images)

        by_first(self.accelerator, record)

    def _state(self, random: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds besides the weights; ``random`` is this process's state."""
        return {
            "run": self.identity,
            "optimizers": gathered(
                [optimizer.state_dict() for optimizer in self.stepper.optimizers],
                self.accelerator.is_main_process,
            ),
            "scaler": self.stepper.scaler.state_dict(),
            "images": self.images,
            "seconds": self.seconds,
            "losses": self._losses,
            "gradient_norms": self._norms,
            "skipped_steps": self._skipped,
            "random": gather_object([random]),  # of every process
        }

    def _begin(self) -> None:
        """Go on from the newest checkpoint, or from the first process's weights."""
        rank = self.accelerator.process_index
        with warnings.catch_warnings():
            if rank:
                warnings.simplefilter("ignore")  # the first process tells of damaged checkpoints
            loaded = self.checkpoints.load()
        found = gather_object([loaded.images if loaded else 0])
        if len(set(found)) > 1:
            raise CheckpointError(
                f"the processes found checkpoints of {found} images in {self.directory}; it must "
                "be one folder that all of them see"
            )
        if loaded is not None:
            self._load(loaded)
        elif rank:
            set_apart(self.config.seed, rank)

    def _tidied(self) -> Stats:
        """The statistics up to here, in a folder without what a killed process left."""
        self.checkpoints.tidy()
        return Stats(self.directory / STATS, self.images)

    def _load(self, loaded: Loaded) -> None:
        state = loaded.state
        try:
            if found := differences(state["run"], self.identity):
                raise CheckpointError(
                    f"the checkpoint {loaded.path} is of a run with other settings "
                    f"({'; '.join(found)}); choose another folder, or delete the checkpoints to "
                    "start over"
                )
            self.model.load_state_dict(parts(loaded.model, self.model))
            self.ema.load_state_dict(parts(loaded.ema, self.ema.model))
            pairs = zip(self.stepper.optimizers, state["optimizers"], strict=True)
            for optimizer, saved in pairs:
                optimizer.load_state_dict(optimizer_parts(saved, optimizer))
            self.stepper.scaler.load_state_dict(state["scaler"])
            self.images = int(state["images"])
            self._earlier_seconds = float(state["seconds"])
            self._losses, self._norms = list(state["losses"]), list(state["gradient_norms"])
            self._skipped = int(state["skipped_steps"])
            rank = self.accelerator.process_index
            if rank < len(state["random"]):
                restore_random_state(state["random"][rank], self.stepper.device)
            else:  # there were fewer processes then
                set_apart(self.config.seed, rank)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(f"the checkpoint {loaded.path} lacks its {error}") from None
        except (RuntimeError, ValueError, TypeError) as error:
            message = f"{loaded.path} is of another model: {str(error)[:300]}"
            raise CheckpointError(message) from None

    def _moving(self) -> Iterator[tuple[str, Tensor]]:
        """What a forward pass may change, and a checkpoint holds: BatchNorm's averages."""
        if self._buffers:
            for name, buffer in self.model.named_buffers():
                if name in self._buffers:
                    yield name, buffer

    @torch.no_grad()
    def _put_back(self, buffers: Mapping[str, Tensor]) -> None:
        for name, buffer in self._moving():
            buffer.copy_(buffers[name])

    def _diverge(self, outcome: Outcome, random: Mapping[str, Any]) -> NoReturn:
        """Leave the batch and the state before the step, and end the run in all processes."""
        folder = self.directory / FOLDER
        ranks = gather_batch(self.stepper.last, self.accelerator)
        content = self._content(random)

        def write() -> None:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
            write_batch(folder, self.images, outcome, ranks)
            Checkpoints(folder, keep=1).save(self.images, *content)

        where = f"{folder} holds the examples of the batch and the state before it."
        try:
            by_first(self.accelerator, write)
        except Exception as error:
            where = f"The state before it could not be written to {folder}: {error}."
        last = by_first(self.accelerator, lambda: last_checkpoint(self.checkpoints))
        rate = float(self.stepper.optimizers[0].param_groups[0]["lr"])
        raise TrainingDiverged(explain(self.images, outcome, rate, where, last))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
