"""What an ablation works on, and where its results lie: see ablate_solvers.py.

Letters: B samples of a batch, C channels, H and W sides.
"""

from __future__ import annotations

import json
import math
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from torch import Tensor

from deqgen.data.noise import generators_for, noise_for
from deqgen.evaluation.frechet import fingerprint
from deqgen.evaluation.generated import Solve
from deqgen.gradients import State
from deqgen.models import open_model
from deqgen.models.choices import encode
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.processes import pick_device
from deqgen.solvers import Solver, Tolerance, make_solver
from deqgen.teachers.names import unknown
from deqgen.training.run_folder import claim_folder, write_json
from deqgen_solvers.state import map_tensors

NEVER = Tolerance(atol=0.0, rtol=0.0)  # spend the budget, and keep the best iterate


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much of everything.

    Args:
        count: images that quality is measured on, for each solver, start and budget.
        budgets: evaluations of the cell.
        paths: samples that are followed for long, in float64.
        evaluations: how long.
        images: images of the loss whose gradient is estimated; as many again are a yardstick.
        gradient_budgets: evaluations of the cell before what an estimator adds.
        step: images of one forward and backward pass.
    """

    count: int
    budgets: tuple[int, ...]
    paths: int
    evaluations: int
    images: int
    gradient_budgets: tuple[int, ...]
    step: int


PRESETS = {
    "smoke": Preset(
        count=8,
        budgets=(1, 2, 4),
        paths=2,
        evaluations=12,
        images=2,
        gradient_budgets=(1, 2),
        step=2,
    ),
    "quick": Preset(
        count=256,
        budgets=(1, 2, 3, 4, 6, 8, 12, 16, 24),
        paths=8,
        evaluations=100,
        images=8,
        gradient_budgets=(1, 2, 3, 6, 12, 24),
        step=8,
    ),
    "full": Preset(
        count=2048,
        budgets=(1, 2, 3, 4, 6, 8, 12, 16, 24),
        paths=16,
        evaluations=200,
        images=32,
        gradient_budgets=(1, 2, 3, 6, 12, 24),
        step=8,
    ),
}

Start = Callable[[EquilibriumModel, Tensor, State], State]
"""(model, noise, the model's own start) -> where a solve starts."""

STARTS: dict[str, Start] = {
    "own": lambda _model, _noise, own: own,  # drawn from each sample's seed, as `generate` does
    "shared": lambda model, noise, _own: model.initial_state(noise),  # one draw for all samples
    "zeros": lambda _model, _noise, own: map_tensors(torch.zeros_like, own),
    "wide": lambda _model, _noise, own: map_tensors(lambda t: 3 * t, own),
}

PARTS = ("equilibrium", "inference", "gradients", "training")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: tyro.conf.Positional[str]
    """A trained model with an equilibrium: whatever deqgen.models.open_model opens."""
    parts: tuple[str, ...] = ("equilibrium", "inference", "gradients")
    """Of equilibrium, inference, gradients, training."""
    preset: str = "full"
    """smoke (seconds, for tests), quick (minutes) or full."""
    solvers: tuple[str, ...] = ("picard", "anderson", "broyden")
    """Names, with options if need be: anderson:memory=2 newton_krylov:jvp=difference."""
    starts: tuple[str, ...] = ("own", "zeros", "wide")
    """Where solves start: own (drawn from each image's seed), shared (one draw for all images),
    zeros, wide (three times own)."""
    gradients: tuple[str, ...] = ()
    """Gradient estimators; default: all."""
    budgets: tuple[int, ...] = ()
    """Evaluations of the cell; default: the preset's."""
    count: int | None = None
    """Images that quality is measured on; default: the preset's. fd_cifar10 depends on it."""
    batch_size: int = 64
    """Images at a time."""
    seed: int = 0
    """Of the first image."""
    teacher: str = "cifar10-small"
    """Whose images the gradients' loss is about: whatever load_teacher opens."""
    pairs: Path | None = None
    """A folder of pairs, for the part training."""
    train_images: int = 10_000
    """How long each estimator trains, in the part training."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    output_dir: Path = Path("runs/ablation")
    """Where the results go. The same command goes on there; more solvers, starts or estimators may
    be asked for later."""


@dataclass(frozen=True)
class Problem:
    """Some images to make: noise and start have the model's dtype."""

    noise: Tensor  # (B, C, H, W)
    label: Tensor | None  # (B,)
    start: State  # (B, ...)

    def parts(self, size: int) -> Iterator[tuple[slice, Problem]]:
        """So many samples at a time, and which."""
        for at in range(0, len(self.noise), size):
            part = slice(at, at + size)
            label = None if self.label is None else self.label[part]
            start = map_tensors(lambda t, part=part: t[part], self.start)
            yield part, Problem(self.noise[part], label, start)


class Study:
    """A model, what is asked about it, and a folder with an entry for each answer.

    Raises:
        ValueError: an option that is wrong, or a model without an equilibrium to solve for.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.preset = preset = _resolve(options)
        self.solvers = {name: parse_solver(name) for name in options.solvers}
        _check_names("part", options.parts, PARTS)
        _check_names("start", options.starts, STARTS)
        self.device = pick_device(options.device)
        model = open_model(options.model, device=self.device)
        Solve(max_steps=1).check(model)
        self.model = cast(EquilibriumModel, model)
        self.own = _title(self.model, self.solvers)
        config = {
            "model": fingerprint(model),
            "architecture": model.architecture,
            "config": _plain_config(model.saved_config()),
            "preset": asdict(preset),
            "batch_size": options.batch_size,
            "seed": options.seed,
            "teacher": options.teacher,
            "device": str(self.device),
            # Times by different numbers of them do not belong in one table.
            "threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }
        self.config = json.loads(json.dumps(config))

    def claim(self) -> None:
        """Make the output folder that of this study."""
        self.folder = claim_folder(self.options.output_dir, self.config)
        (self.folder / "cells").mkdir(exist_ok=True)

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` returned, now or when it was first asked for under this name."""
        slug = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
        path = self.folder / "cells" / f"{slug}.json"
        if not path.exists():
            started = time.perf_counter()
            write_json(path, plain(measure()))
            print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def problem(self, model: EquilibriumModel, seeds: range) -> Problem:
        """The images of these seeds, classes in turn, as `generate` makes them."""
        like = next(model.parameters())
        generators = generators_for(seeds)
        noise = noise_for(generators, model.config.image_shape).to(like)  # (B, C, H, W)
        classes = model.config.num_classes
        label = (torch.tensor(seeds) % classes).to(like.device) if classes else None  # (B,)
        return Problem(noise, label, model.initial_state(noise, generators))

    def seeds(self, count: int, skip: int = 0) -> range:
        first = self.options.seed + skip
        return range(first, first + count)

    @property
    def budget(self) -> int:
        """The model's own."""
        return self.model.config.max_steps

    def clock(self) -> float:
        """Seconds: of the processor where it is one thread, which others cannot disturb."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "cpu" and torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()


def parse_solver(text: str) -> Solver[Any]:
    """A solver from its name and options: ``anderson:memory=2,damping=0.5``."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: options are written name=value, got {item!r}")
        try:
            options[option] = literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = value
    return make_solver(name, **options)


def plain(value: Any) -> Any:
    """JSON data: tensors become lists, and what is not finite becomes None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _resolve(options: Options) -> Preset:
    """The preset with what was asked for in its place."""
    if options.preset not in PRESETS:
        raise ValueError(unknown("preset", options.preset, PRESETS))
    preset = PRESETS[options.preset]
    count = preset.count if options.count is None else options.count
    budgets = tuple(sorted(set(options.budgets))) or preset.budgets
    if count < 2 or options.batch_size < 1:
        raise ValueError("--count must be at least 2 and --batch-size at least 1")
    if budgets[0] < 1:
        raise ValueError(f"--budgets must be at least 1, got {budgets[0]}")
    return replace(preset, count=count, budgets=budgets)


def _plain_config(config: Any) -> dict[str, Any]:
    return {f.name: encode(getattr(config, f.name), f.name) for f in fields(config)}


def _check_names(kind: str, names: tuple[str, ...], allowed: Any) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(unknown(kind, name, allowed))


def _title(model: EquilibriumModel, solvers: dict[str, Solver[Any]]) -> str:
    """What the model's own solver is called among those asked for, or the first of them."""
    own = make_solver(model.deq.solver)
    return next((name for name, solver in solvers.items() if solver == own), next(iter(solvers)))
