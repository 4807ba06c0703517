"""Run by torchrun in two processes; each writes what it saw to ``FOLDER/RANK.json``."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn

from deqgen import create_model
from deqgen.gradients import Implicit, Phantom, Unrolled
from deqgen.training import (
    Checkpoints,
    Hook,
    Interrupted,
    Moment,
    TrainConfig,
    agreement,
    make_accelerator,
    train,
)
from deqgen.training.stats import Stats
from tests.training.toy import Dropping, Regression, config, exact_model, seed_all, small_model

ACCELERATOR = make_accelerator(config())
RANK = ACCELERATOR.process_index
SETTINGS = config(microbatch=2)  # four parts, two for each process
ESTIMATORS = {
    "unrolled": Unrolled(3, checkpoint=True),
    "phantom": Phantom(),
    # A fixed budget of plain steps: Krylov methods that miss their tolerance magnify the rounding.
    "implicit": Implicit(solver="picard", tol=None, max_steps=5),
}


def exact(kind: type[Regression] = Regression) -> Regression:
    return kind(dtype=torch.float64)


class AtStep(Regression):
    """Does something in one process while it computes the first loss of step 3."""

    def __init__(self, rank: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__(dtype=torch.float64)
        self.rank, self.act = rank, act

    def loss(self, *arguments: Any) -> Tensor:
        value = super().loss(*arguments)
        chosen = self.rank == RANK and len(self.seen) == 7  # two parts a step
        return self.act(value) if chosen else value


def run(
    folder: Path, objective: Regression, settings: TrainConfig = SETTINGS, hooks: Any = ()
) -> nn.Module:
    return train(
        exact_model(),
        objective,
        settings,
        folder,
        accelerator=ACCELERATOR,
        hooks=hooks,
        progress=False,
    ).ema


def caught(
    folder: Path, objective: Regression, hooks: Any = (), settings: TrainConfig = SETTINGS
) -> dict[str, Any]:
    """What a run ends with."""
    try:
        run(folder, objective, settings, hooks)
    except (Interrupted, Exception) as error:
        heard = error.signal if isinstance(error, Interrupted) else None
        return {"error": type(error).__name__, "text": str(error), "signal": heard}
    return {"error": None}


class Waiting(Dropping):
    """Five steps, then it waits."""

    def loss(self, *arguments: Any) -> Tensor:
        if len(self.seen) == 10:
            os.write(1, f"{os.getpid()}\n".encode())  # at once: two processes write
            sys.exit(sys.stdin.read())  # which ends only with the test
        return super().loss(*arguments)


def until_killed(folder: Path) -> None:
    seed_all(0)
    run(folder / "killed", exact(Waiting), config(microbatch=2, save_images=8))


def stop(value: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes on what a scheduler has sent already
    return value


def full_disk(folder: Path) -> dict[str, Any]:
    """The first process cannot write the second checkpoint."""

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run(folder, exact(), config(microbatch=2, images=16))
    with mock.patch.object(Checkpoints, "save", fails):
        outcome = caught(folder, exact())
    found = Checkpoints(folder).load()
    return {**outcome, "images": found.images if found else None}


class Odd(Exception):
    """Cannot be made again from its text, so not by another process either."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(f"{text} {number}")


def raises(rank: int, error: Exception) -> Callable[..., None]:
    def fails(*_: Any, **__: Any) -> None:
        if rank == RANK:
            raise error

    return fails


def errors_of_one(folder: Path) -> dict[str, Any]:
    """What one process alone meets, beside its steps."""
    found = {}
    full = raises(0, OSError(errno.ENOSPC, "No space left on device"))
    with mock.patch.object(Stats, "write", full):
        found["statistics"] = caught(folder / "statistics", exact())
    with mock.patch.object(Stats, "__init__", full):
        found["first"] = caught(folder / "first", exact())
    with mock.patch.object(ACCELERATOR, "log", raises(0, ConnectionError("no tracker"))):
        found["tracker"] = caught(folder / "tracker", exact())
    with mock.patch.object(Checkpoints, "save", raises(0, Odd("odd", 3))):
        found["odd"] = caught(folder / "odd", exact())
    for rank in (0, 1):
        hook = Hook(16, raises(rank, ArithmeticError("of a hook")))
        name = f"hook{rank}"
        found[name] = caught(folder / name, exact(), [hook])
    found["value"] = caught(folder / "value", exact(), [Hook(16, lambda _: {"loss": 1.0})])
    return found


def average(folder: Path) -> list[float]:
    """What the caller is given, of statistics over a batch: no hook has made it the same."""
    settings = config(microbatch=4, images=24)
    model = train(
        small_model(), Regression(), settings, folder, accelerator=ACCELERATOR, progress=False
    ).ema
    return [float(value.double().sum()) for value in model.state_dict().values()]


def alone(scenario: str, folder: Path) -> None:
    """An error in one process while the other waits for it in a collective call."""
    agreement.PATIENCE = 0.5
    if scenario == "objective":
        run(folder, AtStep(1, lambda _: broken()))

    def look(_: Moment) -> None:
        if RANK == 1:
            broken()
        ACCELERATOR.wait_for_everyone()

    run(folder, exact(), hooks=[Hook(16, look)])


def broken() -> Tensor:
    raise ArithmeticError("only here")


def hooks(folder: Path) -> dict[str, Any]:
    """The average is the same in every process, also of statistics over a batch."""
    seen: list[int] = []

    def look(moment: Moment) -> dict[str, float]:
        seen.append(moment.images)
        torch.rand(3)
        sums = [float(value.double().sum()) for value in moment.model.state_dict().values()]
        first, second = gather_object([sums])
        return {"equal": first == second, "drawn": moment.images}

    train(
        small_model(),
        Regression(),
        config(microbatch=4),
        folder,
        accelerator=ACCELERATOR,
        hooks=[Hook(32, look)],
        progress=False,
    )
    return {"seen": seen}


class Pairs:
    """A tiny GET is to map noise to constants."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return 8

    def loss(self, model: nn.Module, indices: Any, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(indices), 3, 8, 8, generator=generator, dtype=self.dtype)
        label = torch.from_numpy(indices) % 3
        images = model(noise, label, generator=generator).images
        target = torch.from_numpy(indices).reshape(-1, 1, 1, 1) / 8.0
        return torch.stack([(image - target).square().mean() for image in images]).sum()


def tiny_get(estimator: str, depth: int = 1) -> nn.Module:
    model = create_model(
        "GET-N/4",
        image_size=8,
        num_classes=3,
        width=16,
        heads=2,
        depth=depth,
        deq_depth=1,
        generator=torch.Generator().manual_seed(0),
    )
    model.deq.gradient = ESTIMATORS[estimator]
    return model.double()


def main(scenario: str, folder: Path) -> None:
    if scenario == "kill":
        return until_killed(folder)
    if scenario in ("objective", "hook"):
        return alone(scenario, folder)
    results: dict[str, Any] = {"processes": ACCELERATOR.num_processes}
    seed_all(0)
    run(folder / "dropping", exact(Dropping))
    seed_all(123)  # what the checkpoint holds counts
    run(folder / "killed", exact(Dropping))
    objective = exact()
    run(folder / "plain", objective)
    results["seen"] = objective.seen
    results["signal"] = caught(folder / "stopped", AtStep(1, stop))
    run(folder / "stopped", exact())
    results["nonfinite"] = caught(folder / "nonfinite", AtStep(1, lambda loss: loss * torch.nan))
    results["disk"] = full_disk(folder / "disk")
    results["errors"] = errors_of_one(folder / "errors")
    results["average"] = average(folder / "average")
    group: Any = distributed.group.WORLD
    results["limit"] = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    results["hooks"] = hooks(folder / "hooks")
    for name in ESTIMATORS:
        settings = config(batch_size=4, images=12, microbatch=1)
        train(
            tiny_get(name),
            Pairs(),
            settings,
            folder / name,
            accelerator=ACCELERATOR,
            progress=False,
        )
    with contextlib.suppress(ValueError):
        run(folder / "indivisible", exact(), config(batch_size=9))
        results["indivisible"] = "not refused"
    (folder / f"{RANK}.json").write_text(json.dumps(results))
    ACCELERATOR.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
