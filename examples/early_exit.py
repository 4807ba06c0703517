"""Stop each sample of a trained equilibrium model when it has converged: work against quality.

    python examples/early_exit.py get-nano-cifar10 --rtol 0.4 0.3 0.25 0.2 0.15
    python examples/early_exit.py student.safetensors --rtol 0.1 0.03 0.01 --count 5000

The first row spends the model's whole budget on every sample. The others stop a sample at its own
relative residual ||f(z) - z|| / ||f(z)||; samples that are done leave the batch. Written are
early_exit.json, and early_exit.png: how residuals fall, and what fraction of samples has left when.

Letters: B samples, T evaluations of the cell.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from deqgen.data.noise import generators_for, noise_for
from deqgen.evaluation import evaluate
from deqgen.evaluation.generated import Solve
from deqgen.models import GenerativeModel, open_model
from deqgen.solvers import Tolerance
from deqgen.training.run_folder import write_json


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: tyro.conf.Positional[str]
    """A trained student: whatever deqgen.models.open_model opens."""
    rtol: tuple[float, ...] = (0.2, 0.1, 0.05, 0.02, 0.01)
    """Relative residuals at which samples stop."""
    max_steps: int | None = None
    """Most evaluations of the cell; default: the model's own."""
    count: int = 3072
    """Images for each row; fd_cifar10 depends on it."""
    batch_size: int = 256
    """Images at a time."""
    seed: int = 0
    """Of the first image."""
    output_dir: Path = Path("runs/early_exit")
    """Where the results go."""


@dataclass
class Run:
    """What one tolerance came to, over all batches."""

    images: list[Tensor] = field(default_factory=list)
    evaluated: int = 0  # rows that the cell was evaluated on, over all evaluations
    exits: Counter[int] = field(default_factory=Counter)  # evaluations a sample took: how many did
    residuals: list[Tensor] = field(default_factory=list)  # (T, B) each


@torch.no_grad()
def sample(model: GenerativeModel, options: Options, rtol: float) -> Run:
    """Generate all images, each sample stopped at ``rtol``."""
    run, config = Run(), model.config
    for seeds in torch.arange(options.seed, options.seed + options.count).split(options.batch_size):
        generators = generators_for(seeds.tolist())
        noise = noise_for(generators, config.image_shape)  # (B, C, H, W)
        out = model(
            noise,
            seeds % config.num_classes if config.num_classes else None,
            generator=generators,
            max_steps=options.max_steps,
            tol=Tolerance(atol=0.0, rtol=rtol),
            trace=True,
        )
        solution = out.equilibrium.solution
        run.images.append(out.image.float())
        run.evaluated += sum(solution.trace.rows)
        run.exits.update((solution.steps + 1).tolist())
        run.residuals.append(solution.trace.residual)
    return run


def row(run: Run, options: Options, rtol: float, whole: int, classes: int | None) -> dict[str, Any]:
    """A line of the table; ``whole`` is the work of the full budget."""
    labels = torch.arange(options.seed, options.seed + options.count) % classes if classes else None
    report = evaluate(torch.cat(run.images), labels)
    total = sum(run.exits.values())
    return {
        "rtol": rtol,
        "evaluations": run.evaluated / total,
        "saved": 1 - run.evaluated / whole,
        "exits": {steps: count / total for steps, count in sorted(run.exits.items())},
        **report.to_dict(),
    }


def draw(whole: Run, rows: list[dict[str, Any]], path: Path) -> None:
    """How residuals fall (median and middle half), and who has left when."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    residual = torch.cat(whole.residuals, dim=1)  # (T, B)
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=residual.dtype)
    low, middle, high = (residual / residual[0]).nanquantile(shares, dim=1)
    steps = range(1, len(residual) + 1)
    left.semilogy(steps, middle, marker="o", label="median")
    left.fill_between(steps, low, high, alpha=0.3, label="middle half")
    left.set_xlabel("evaluations of the cell")
    left.set_ylabel("residual, relative to the first")
    left.legend()
    for line in rows[1:]:
        gone = torch.tensor([line["exits"].get(k, 0.0) for k in steps]).cumsum(0)
        right.plot(steps, gone, marker="o", alpha=0.7, label=f"rtol {line['rtol']:g}")
    right.set_xlabel("evaluations of the cell")
    right.set_ylabel("fraction of samples that have left")
    right.set_ylim(0, 1.02)
    right.legend()
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    if options.count < 2 or options.batch_size < 1:
        raise ValueError("--count must be at least 2 and --batch-size at least 1")
    model = open_model(options.model)
    if getattr(model, "deq", None) is None:
        raise ValueError(f"{options.model} is a {model.architecture}, which has no equilibrium")
    Solve(max_steps=1).check(model)  # no diffusion model, either
    options.output_dir.mkdir(parents=True, exist_ok=True)
    whole = sample(model, options, 0.0)
    rows: list[dict[str, Any]] = []
    for rtol in (0.0, *options.rtol):
        run = whole if rtol == 0 else sample(model, options, rtol)
        rows.append(row(run, options, rtol, whole.evaluated, model.config.num_classes))
        line = rows[-1]
        print(
            f"rtol {rtol:6g}  evaluations {line['evaluations']:5.2f}  saved {line['saved']:6.1%}  "
            f"fd_cifar10 {line['fd_cifar10']:7.2f}",
            flush=True,
        )
        write_json(options.output_dir / "early_exit.json", rows)
    draw(whole, rows, options.output_dir / "early_exit.png")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was measured so far is in the output folder")
    except (ValueError, OSError) as error:
        sys.exit(f"early_exit: {error}")
