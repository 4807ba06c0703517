"""One optimizer step of one or many processes: the only place where weights change.

Letters: B samples of a part, P parts of a step over all processes, W processes.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deqgen.training.config import TrainConfig
from deqgen.training.interrupt import StopRequest
from deqgen.training.objective import Objective
from deqgen.training.optimizers import make_optimizers
from deqgen.training.order import Part, batch_indices, cut
from deqgen.training.parallel import (
    ObjectiveLoss,
    in_parallel,
    moving_buffers,
    spread,
    total,
    without_sync,
)
from deqgen.training.schedule import learning_rate
from deqgen.training.sharding import clip_gradients

SIGNALS = signal.SIGINT, signal.SIGTERM
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """What a step was, in the eyes of all processes.

    Attributes:
        loss: mean over the batch.
        gradient_norm: 2-norm of its gradient, before clipping.
        signal: one that any process has received, or None.
        taken: the weights moved. If not, ``skipped`` says whether that is in order.
        skipped: float16 overflowed in the backward pass, and the scale of the loss was lowered.
    """

    loss: float
    gradient_norm: float
    signal: int | None
    taken: bool
    skipped: bool


class Stepper:
    """Takes steps, one after another, and remembers the parts of the last one.

    Raises:
        ValueError: the model has no weights to train, float16 without a GPU, or a device, a batch
            or an optimizer that does not suit.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: TrainConfig,
        accelerator: Accelerator,
    ) -> None:
        self.examples = len(objective)
        self.config = config
        self.accelerator = accelerator
        self.parts = config.parts(accelerator.num_processes)  # P
        loss = ObjectiveLoss(model, objective)
        self.loss = in_parallel(loss, accelerator, sharded=config.shard)
        # DDP sees to that itself.
        self.share_buffers = config.shard and bool(moving_buffers(model))
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizers = make_optimizers(model, config)
        self.device = self.weights[0].device
        if config.precision == "float16" and self.device.type == "cpu":
            raise ValueError("precision 'float16' needs a GPU; on a CPU take 'bfloat16'")
        # Not accelerate's: with two optimizers it would update its scale between them.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.last: list[tuple[Part, Tensor]] = []

    def step(self, images: int, stop: StopRequest) -> Outcome:
        """Take the step after ``images`` images, unless something is not finite.

        Args:
            images: seen so far.
            stop: of this process.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, images)
        self.last = self._backward(images // self.config.batch_size)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = clip_gradients(self.weights, self.config.clip_norm)
        loss, size, heard = self._agree(norm, stop)
        skipped = self.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(size)
        skipped = skipped and self.scaler.get_scale() >= 1  # below, it is not the scale's fault
        taken = math.isfinite(loss) and math.isfinite(size)
        if taken:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        if taken or skipped:
            self.scaler.update()
        return Outcome(loss, size, heard, taken, skipped)

    def _backward(self, number: int) -> list[tuple[Part, Tensor]]:
        """Add up the gradients of this process's parts; return them with their losses."""
        config, accelerator = self.config, self.accelerator
        indices = batch_indices(self.examples, config.batch_size, config.seed, number)
        rank, processes = accelerator.process_index, accelerator.num_processes
        mine = cut(indices, self.parts, config.seed, number, rank=rank, processes=processes)
        done = []
        if self.share_buffers:
            spread(self.loss.buffers(), accelerator)
        for part in mine:
            dtype = AUTOCAST.get(config.precision)
            with without_sync(self.loss, apart=part is not mine[-1]):
                with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                    loss = self.loss(part.indices, part.generator)
                # The processes average, so that P parts count 1/P each.
                share = loss / len(mine) if len(mine) > 1 else loss
                self.scaler.scale(share).backward()
            done.append((part, loss.detach()))
        return done

    def _agree(self, norm: Tensor, stop: StopRequest) -> tuple[float, float, int | None]:
        """Loss, gradient norm and signal of all processes; the one synchronisation of a step."""
        processes = self.accelerator.num_processes
        losses = [loss.float() for _, loss in self.last]
        loss = losses[0] if self.parts == 1 else torch.stack(losses).sum() / self.parts
        if processes == 1:
            value, size = torch.stack([loss, norm.float()]).tolist()
            return value, size, stop.signal
        flags = torch.tensor([float(stop.signal == n) for n in SIGNALS], device=self.device)
        measured = torch.stack([loss, norm.float() / processes, *flags])  # (2 + signals,)
        value, size, *counts = total(measured, self.accelerator).tolist()
        heard = [number for number, count in zip(SIGNALS, counts, strict=True) if count]
        return value, size, heard[-1] if heard else None
