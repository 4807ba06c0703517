"""``deqgen sample``: seeds in, images out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from deqgen.models import GenerativeModel

_FILES = (".npz", ".zip", ".png")
_OTHER_FILES = (".jpg", ".jpeg", ".gif", ".webp", ".npy", ".pt", ".tar", ".gz", ".safetensors")


def sample(
    model: Annotated[str, arg(metavar="MODEL")],
    /,
    out: Annotated[Path, arg(metavar="OUT")],
    seeds: str = "0-63",
    labels: str | None = None,
    max_steps: int | None = None,
    tol: float | None = None,
    solver: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    columns: int = 0,
) -> None:
    """Generate images, one a seed, the same whatever the batch or the number of processes.

    With several GPUs: torchrun --standalone --nproc_per_node=N -m deqgen sample MODEL ...

    Args:
        model: A .safetensors file, a folder with a model, the folder of a training run, or a name
            on the Hub.
        out: A folder for one PNG a seed (interrupted, the same command goes on); OUT.npz for ADM's
            evaluator; OUT.zip for an archive in EDM's layout; OUT.png for one grid. A file that
            exists is not replaced.
        seeds: Numbers and ranges, such as 0-63,100,200-210.
        labels: Classes that seeds take in turn (the seed modulo their number is the place): 3, or
            0-9, or 0,1,2; or uniform for all of them, as is the default where there are classes.
        max_steps: Evaluations of the equilibrium's cell, at most.
        tol: Relative residual at which a sample's solve ends; what that took is shown.
        solver: Name of the solver.
        batch_size: Images at a time.
        device: Such as cuda:1 or cpu; auto takes the process's own GPU where there is one.
        precision: Of the matrix products.
        columns: Images a row of a grid; 0 makes about as many columns as rows.
    """
    from deqgen.commands.number_list import parse_numbers
    from deqgen.commands.sample_job import SampleJob
    from deqgen.data.noise import SEED_LIMIT
    from deqgen.data.sample_writers import check_free
    from deqgen.models import open_model
    from deqgen.processes import processes

    chosen = parse_numbers(seeds, "--seeds", SEED_LIMIT)
    _check_out(out, columns)
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if out.suffix in _FILES:
        check_free(out)
    with processes(device) as ours:
        loaded = open_model(model, device=ours.device)
        _check_model(loaded, out)
        job = SampleJob(
            model=loaded,
            seeds=chosen,
            classes=_classes(loaded, labels),
            solve=_solve(loaded, max_steps, tol, solver),
            batch_size=batch_size,
            precision=precision,
            ours=ours,
        )
        if out.suffix in _FILES:
            job.write_file(out, columns)
        else:
            job.write_folder(out)
        report = job.report(out)
    if report:
        print(report)


def _check_out(out: Path, columns: int) -> None:
    if out.suffix in _OTHER_FILES:
        raise ValueError(
            f"--out is a folder, or a file that ends in {', '.join(_FILES)}; got {str(out)!r}"
        )
    if columns < 0 or (columns and out.suffix != ".png"):
        raise ValueError(f"--columns {columns}: a grid, OUT.png, has them, one or more")


def _check_model(model: GenerativeModel, out: Path) -> None:
    if model.takes_noise_level:
        raise ValueError(
            f"this {model.architecture} is a denoiser, which takes noise levels: a sampler of "
            "deqgen.teachers turns noise into images with it (deqgen.models.ModelDenoiser)"
        )
    if model.config.channels not in (1, 3) and out.suffix != ".npz":
        raise ValueError(
            f"this model gives {model.config.channels} channels, latents and no pixels: only an "
            f".npz keeps them, as float32 (N, C, H, W); got --out {out}"
        )


def _classes(model: GenerativeModel, labels: str | None) -> list[int] | None:
    from deqgen.commands.number_list import parse_numbers

    count = model.config.num_classes
    if count is None:
        if labels is not None:
            raise ValueError(f"--labels {labels}: this {model.architecture} is unconditional")
        return None
    return (
        [*range(count)] if labels in (None, "uniform") else parse_numbers(labels, "--labels", count)
    )


def _solve(
    model: GenerativeModel, max_steps: int | None, tol: float | None, solver: str | None
) -> dict[str, Any]:
    """What is asked of the equilibrium, checked before the first image."""
    from deqgen.models import EquilibriumModel
    from deqgen_solvers import Tolerance, make_solver

    options = {"max_steps": max_steps, "tol": tol, "solver": solver}
    asked: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if asked and not isinstance(model, EquilibriumModel):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise ValueError(
            f"this {model.architecture} has no equilibrium to solve: leave out {named}"
        )
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"--max-steps must be at least 1, got {max_steps}")
    if solver is not None:
        make_solver(solver)
    if tol is not None:
        asked["tol"] = Tolerance(atol=0.0, rtol=tol)
    return asked
