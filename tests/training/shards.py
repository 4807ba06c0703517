"""Run by torchrun in two processes that share the weights; each writes what it saw."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from deqgen import create_model
from deqgen.gradients import Implicit
from deqgen.training import Hook, Moment, TrainConfig, train
from deqgen.training.interrupt import StopRequest
from deqgen.training.run import Run
from deqgen.training.sharding import local
from deqgen_solvers import Tolerance
from tests.training.fleet import (
    ACCELERATOR,
    ESTIMATORS,
    RANK,
    Pairs,
    Waiting,
    caught,
    exact,
    tiny_get,
)
from tests.training.toy import Dropping, Regression, config, exact_model, seed_all, small_model

SETTINGS = config(microbatch=2, shard=True, clip_norm=0.05)  # less than all gradients of the run
FEW = config(batch_size=4, images=8, microbatch=1, shard=True)
UNET = "implicit-unet"
TIED = "tied"
MODELS = (*ESTIMATORS, UNET, TIED)


def model(name: str) -> nn.Module:
    """A GET with an estimator; one with ties; or a DEQ-UNet, whose solves end when they end."""
    if name in ESTIMATORS:
        return tiny_get(name, depth=2)
    if name == TIED:
        return tied()
    return create_model(
        "DEQ-UNet-T",
        image_size=8,
        num_classes=3,
        width=8,
        scales=2,
        max_steps=40,
        rtol=1e-9,
        gradient=Implicit(tol=Tolerance(atol=0.0, rtol=1e-9)),
        generator=torch.Generator().manual_seed(0),
    ).double()


def tied() -> nn.Module:
    """A GET with a block that is applied twice, and one that shares its weights with the cell."""
    net = tiny_get("unrolled", depth=4)
    net.blocks[2] = net.blocks[1]
    net.blocks[3].mlp = net.deq_blocks[0].mlp
    return net


class Counting(Pairs):
    """Notes how many evaluations each solve took."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def loss(self, model: nn.Module, indices: Any, generator: torch.Generator) -> Tensor:
        def note(_: nn.Module, __: Any, equilibrium: Any) -> None:
            self.steps += equilibrium.solution.steps.tolist()

        with model.deq.register_forward_hook(note):
            return super().loss(model, indices, generator)


def run(folder: Path, objective: Any, settings: TrainConfig = SETTINGS, **options: Any) -> Any:
    net = options.pop("model", None) or exact_model()
    return train(
        net, objective, settings, folder, accelerator=ACCELERATOR, progress=False, **options
    )


class Ending(Dropping):
    """Five steps, then an error in all processes."""

    def loss(self, *arguments: Any) -> Tensor:
        if len(self.seen) == 10:
            raise ArithmeticError("the end")
        return super().loss(*arguments)


def until_killed(folder: Path) -> None:
    seed_all(0)
    run(folder / "stopped", exact(Waiting), config(microbatch=2, save_images=8, shard=True))


def ended(folder: Path) -> None:
    """Five steps and an error."""
    seed_all(0)
    with contextlib.suppress(ArithmeticError):
        run(folder / "stopped", exact(Ending), config(microbatch=2, save_images=40, shard=True))


def go_on(folder: Path) -> None:
    """Ten steps, at a stretch, and those that are left of a run that was stopped."""
    settings = config(microbatch=2, save_images=40, shard=True)
    seed_all(0)
    run(folder / "dropping", exact(Dropping), settings)
    seed_all(123)  # what the checkpoint holds counts
    run(folder / "stopped", exact(Dropping), settings)


def held(sharded: bool, folder: Path) -> dict[str, int]:
    """Bytes of this process between two steps."""
    settings = replace(FEW, shard=sharded)
    run = Run(tiny_get("unrolled", depth=2), Pairs(), settings, folder, ACCELERATOR)
    run.step(StopRequest())
    weights = list(run.model.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    states = [entry for each in run.stepper.optimizers[0].state.values() for entry in each.values()]
    groups = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": [entry for entry in states if entry.ndim],
        "average": list(run.ema.model.parameters()),
    }
    return {name: memory(map(local, group)) for name, group in groups.items()}


def memory(tensors: Iterable[Tensor]) -> int:
    """Bytes of all storages, each of which may serve several tensors."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def hooks(folder: Path) -> dict[str, Any]:
    """What a hook is given is whole, the same everywhere, and each process's own to call."""
    seen: dict[str, Any] = {"images": []}

    def look(moment: Moment) -> dict[str, float]:
        seen["images"].append(moment.images)
        if RANK == 0:  # which is no business of the other's
            with torch.no_grad():
                moment.model(torch.ones(2, 4))
        sums = [float(value.double().sum()) for value in moment.model.state_dict().values()]
        first, second = gather_object([sums])
        return {"equal": first == second}

    settings = config(microbatch=4, shard=True)
    found = run(
        folder, Regression(), settings, model=small_model(), hooks=[Hook(32, look)]
    ).ema.state_dict()
    return {**seen, "result": {name: value.tolist() for name, value in found.items()}}


def narrow() -> nn.Module:
    """Weights of one row, of which the second process has nothing."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 2)).double()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3, generator=generator)
    return net


def compiled(folder: Path) -> None:
    run(folder, Pairs(), replace(FEW, compile=True), model=tiny_vit())


def tiny_vit() -> nn.Module:
    options = {"image_size": 8, "num_classes": 3, "width": 16, "heads": 2, "depth": 2}
    return create_model("ViT-N/4", **options, generator=torch.Generator().manual_seed(0)).double()


def unfit() -> list[nn.Module]:
    """Weights that cannot be cut into rows."""
    number, turned = exact_model(), exact_model()
    number.scale = nn.Parameter(torch.ones(()))
    turned[0].weight = nn.Parameter(torch.ones(4, 8).T)  # type: ignore[index]
    return [number, turned]


def refused(folder: Path, net: nn.Module) -> str:
    try:
        run(folder, exact(), model=net)
    except ValueError as error:
        return str(error)
    return ""


def main(scenario: str, folder: Path) -> None:
    if scenario != "all":
        return {"kill": until_killed, "go on": go_on, "compile": compiled}[scenario](folder)
    results: dict[str, Any] = {}
    ended(folder)
    go_on(folder)
    run(folder / "plain", exact())
    net = narrow()
    run(folder / "narrow", exact(), model=net)
    results["again"] = refused(folder / "again", net)
    results["unfit"] = [refused(folder / "unfit", net) for net in unfit()]
    results["different"] = refused(folder / "different", nn.Linear(4, 2 + RANK).double())
    run(folder / "whole", exact(), config(microbatch=2, clip_norm=0.05, images=40))
    run(folder / "whole", exact())
    results["steps"] = {}
    for name in MODELS:
        objective = Counting()
        run(folder / name, objective, FEW, model=model(name))
        results["steps"][name] = objective.steps
    net = tiny_get("unrolled", depth=2).float()
    run(folder / "bfloat16", Pairs(torch.float32), replace(FEW, precision="bfloat16"), model=net)
    results["held"] = [held(sharded, folder / f"held{sharded}") for sharded in (False, True)]
    results["hooks"] = hooks(folder / "hooks")
    results["nonfinite"] = caught(folder / "nonfinite", Broken(), settings=SETTINGS)
    (folder / f"{RANK}.json").write_text(json.dumps(results))
    ACCELERATOR.end_training()


class Broken(Regression):
    """Its loss is not finite in one process, from step 3 on."""

    def __init__(self) -> None:
        super().__init__(dtype=torch.float64)

    def loss(self, *arguments: Any) -> Tensor:
        value = super().loss(*arguments)
        return value * torch.nan if RANK and len(self.seen) > 6 else value


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
