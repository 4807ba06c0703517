"""GET driven by us and by torchdeq: seconds a training step and an inference, and the floor.

Both drive the same blocks with the same weights on the same noise, six iterations, all decoded and
supervised; a training step is forward, backward and AdamW. "Saving" keeps one state an iteration:
our `Unrolled(checkpoint=True)`, torchdeq's `mem_gc`. The ratio is the median over the rounds of
that of two neighbouring runs, which a slow moment of the machine meets alike. The rate is the work
of our step (3 times the forward FLOPs, those of the recomputation not counted) over its time, in
per cent of what a product of two square matrices of the same dtype reaches in the same run.

Letters: B samples, L tokens, D width, K supervised states.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import truediv
from typing import Any

import torch
import torchdeq
from report import table
from timing import each_round
from torch import Tensor, nn
from torchdeq.utils import mem_gc

from deqgen.gradients import Unrolled
from deqgen.models import GET, create_model
from deqgen.models.cost import model_multiply_adds

BATCHES = {"GET-T/2": 32, "GET-S/2": 8}
ITERATIONS = 6
SIDE = 2048
"""Of the matrices whose product is the floor."""


class Driven(nn.Module):
    """A GET whose iterations torchdeq drives, as in the published code; it decodes state by state.

    Args:
        model: whose layers are used.
        saving: keep one state an iteration.
    """

    def __init__(self, model: GET, saving: bool = False) -> None:
        super().__init__()
        self.model, self.saving = model, saving
        self.cell = _Cell(model)
        self.deq = torchdeq.get_deq(
            grad=ITERATIONS,
            sup_gap=1,
            f_solver="fixed_point_iter",
            f_max_iter=0,
            eval_f_max_iter=ITERATIONS,
            norm_type="none",
        )

    def forward(self, noise: Tensor) -> list[Tensor]:
        """Take noise (B, C, H, W) to K images of that shape."""
        u = self.model.embed(noise)  # N of (B, L, 3*D)
        z0 = self.model.initial_state(noise).contiguous()  # (B, L, D)
        if self.saving and self.training:
            states, _ = self.deq(lambda z: mem_gc(self.cell, (z, *u)), z0)
        else:
            states, _ = self.deq(lambda z: self.cell(z, *u), z0)
        return [self.model.decode((state,))[0] for state in states]


class _Cell(nn.Module):
    """The equilibrium blocks as a module of their own, which mem_gc wants."""

    def __init__(self, model: GET) -> None:
        super().__init__()
        self.deq_blocks, self.iterate = model.deq_blocks, model.iterate

    def forward(self, z: Tensor, *u: Tensor) -> Tensor:
        return self.iterate(z, *u)


@dataclass(frozen=True)
class Case:
    """One model in one precision, on given noise (B, C, H, W)."""

    model: GET
    noise: Tensor
    half: bool
    compiled: bool = False

    def programs(self) -> dict[str, Callable[[], object]]:
        """Everything to time, by "what/library"."""
        saving = Unrolled(ITERATIONS, checkpoint=True)
        return {
            "training/torchdeq": partial(self.train, self.built(Driven(self.model))),
            "training/deqgen": partial(self.train, self.built(self.model), Unrolled(ITERATIONS)),
            "training, saving/torchdeq": partial(self.train, self.built(Driven(self.model, True))),
            "training, saving/deqgen": partial(self.train, self.built(self.model), saving),
            "inference/torchdeq": partial(self.infer, self.built(Driven(self.model))),
            "inference/deqgen": partial(self.infer, self.built(self.model)),
        }

    def built(self, network: nn.Module) -> nn.Module:
        """Compiled if asked for."""
        compiled: nn.Module = torch.compile(network) if self.compiled else network
        return compiled

    def train(self, network: nn.Module, gradient: Unrolled | None = None) -> None:
        """One step; the optimizer's state is made anew, which costs both libraries the same."""
        if gradient is not None:
            self.model.deq.gradient = gradient
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            out = network.train()(self.noise)
            images = out if isinstance(out, list) else out.images
            loss = torch.stack([(image - self.noise).abs().mean() for image in images]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def infer(self, network: nn.Module) -> None:
        """Images of all noise."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            network.eval()(self.noise)


def matrix_rate(half: bool) -> float:
    """FLOPs a second of a product of two square matrices, the best of ten."""
    dtype = torch.bfloat16 if half else torch.float32
    a, b = torch.randn(2, SIDE, SIDE).to(dtype)
    taken = []
    for _ in range(11):
        start = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(taken[1:])


def speeds(rounds: int, *, compiled: bool = False) -> list[dict[str, Any]]:
    """Measure all models in both precisions."""
    rows = []
    for name, batch in BATCHES.items():
        model: Any = create_model(name)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch, *model.config.image_shape, generator=generator)
        work = 2.0 * batch * model_multiply_adds(name)
        for half in (False, True):
            torch.compiler.reset()
            times = each_round(Case(model, noise, half, compiled).programs(), rounds, seconds=180)
            rate = matrix_rate(half)
            for what in ("training", "training, saving", "inference"):
                rounds_of = times[f"{what}/torchdeq"], times[f"{what}/deqgen"]
                theirs, ours = map(statistics.median, rounds_of)
                flops = work if what == "inference" else 3 * work
                rows.append(
                    {
                        "model": name,
                        "B": batch,
                        "precision": "bfloat16" if half else "float32",
                        "what": what,
                        "torchdeq, s": theirs,
                        "deqgen, s": ours,
                        "ratio": statistics.median(map(truediv, *rounds_of)),
                        "deqgen, % of matrix rate": 100 * flops / ours / rate,
                        "torchdeq, %": 100 * flops / theirs / rate,
                    }
                )
            # Compiled, a case takes a quarter of an hour: show what is known.
            print(table(rows[-3:]), file=sys.stderr, flush=True)
    return rows


def beside_itself(rounds: int) -> list[dict[str, Any]]:
    """What a ratio is worth: torchdeq beside itself, measured alike, GET-S/2 in bfloat16."""
    name = "GET-S/2"
    model: Any = create_model(name)
    generator = torch.Generator().manual_seed(0)
    case = Case(model, torch.randn(BATCHES[name], 3, 32, 32, generator=generator), half=True)
    programs: dict[str, Callable[[], object]] = {}
    for who in ("first", "second"):
        programs[f"training/{who}"] = partial(case.train, Driven(model))
        programs[f"inference/{who}"] = partial(case.infer, Driven(model))
    times = each_round(programs, rounds, seconds=180)
    rows = []
    for what in ("training", "inference"):
        pairs = times[f"{what}/first"], times[f"{what}/second"]
        ratios = sorted(map(truediv, *pairs))
        rows.append(
            {
                "what": what,
                "ratio": statistics.median(ratios),
                "least": ratios[0],
                "most": ratios[-1],
            }
        )
    return rows
