"""``deqgen sample``: seeds in, images out."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from deqgen.models import GenerativeModel

_FILES = (".npz", ".zip", ".png")
_OTHER_FILES = (".jpg", ".jpeg", ".gif", ".webp", ".npy", ".pt", ".tar", ".gz", ".safetensors")


def sample(
    source: Annotated[str | None, arg(metavar="MODEL")] = None,
    /,
    model: Annotated[str | None, arg(metavar="MODEL")] = None,
    out: Annotated[Path | None, arg(metavar="OUT")] = None,
    seeds: str = "0-63",
    labels: str | None = None,
    max_steps: int | None = None,
    tol: float | None = None,
    solver: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    columns: int = 0,
) -> None:
    """Generate images, one a seed, the same up to rounding whatever the batch.

    Rounding moves few pixels, by one level of 255, and the number of processes not even that.
    With several GPUs: torchrun --standalone --nproc_per_node=N -m deqgen sample MODEL ...

    Args:
        source: An embedded model such as get-nano-cifar10 (deqgen list --kind embedded), a
            .safetensors file, a folder with a model, the folder of a training run, or a name on
            the Hub.
        model: The same, as an option.
        out: A folder for one PNG a seed (interrupted, the same command goes on); OUT.npz for ADM's
            evaluator; OUT.zip for an archive in EDM's layout; OUT.png for one grid. A file that
            exists is not replaced. Default: a grid here, MODEL.png, or MODEL-2.png if that exists,
            and so on.
        seeds: Numbers and ranges, such as 0-63,100,200-210.
        labels: Classes of a conditional model: uniform (all of them in turn, the default), random,
            or those that seeds take in turn: 3, or 0-9, or 0,1,2 (the seed modulo their number is
            the place).
        max_steps: Budget of the solve: evaluations of the equilibrium's cell, at most; solvers that
            make more within a step, such as newton_krylov, spend those on top.
        tol: Relative residual at which a sample's solve ends; what that took is shown. A GET has no
            fixed point and its residual falls as its state grows: use max-steps there.
        solver: Name of the solver.
        batch_size: Images at a time.
        device: Such as cuda:1 or cpu; auto takes the process's own GPU where there is one.
        precision: Of the matrix products.
        columns: Images a row of a grid; 0 makes about as many columns as rows.
    """
    from deqgen.commands.sample_job import SampleJob
    from deqgen.data.noise import SEED_LIMIT
    from deqgen.data.sample_writers import check_free
    from deqgen.evaluation.generated import Solve
    from deqgen.evaluation.label_policy import check_policy
    from deqgen.models import open_model
    from deqgen.number_list import parse_numbers
    from deqgen.processes import processes
    from deqgen_solvers import Tolerance

    name = _one_name(source, model)
    chosen = parse_numbers(seeds, "--seeds", SEED_LIMIT)
    out = _free_grid(name) if out is None else out
    _check_out(out, columns)
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    solve = Solve(
        max_steps=max_steps,
        solver=solver,
        tol="model" if tol is None else Tolerance(atol=0.0, rtol=tol),
        precision=precision,
    )
    is_file = out.suffix.lower() in _FILES
    if is_file:
        check_free(out)
    with processes(device) as ours:
        loaded = open_model(name, device=ours.device)
        solve.check(loaded)
        _check_channels(loaded, out)
        job = SampleJob(
            model=loaded,
            seeds=chosen,
            labels=check_policy(labels, loaded.config),
            solve=solve,
            batch_size=batch_size,
            ours=ours,
        )
        if is_file:
            job.write_file(out, columns)
        else:
            job.write_folder(out)
        report = job.report(out)
    if report:
        print(report)


def _one_name(source: str | None, model: str | None) -> str:
    if source is not None and model is not None:
        raise ValueError(f"MODEL {source!r} and --model {model!r} are two models; give one")
    name = source or model
    if not name:
        raise ValueError(
            "name a model: deqgen sample MODEL, or --model MODEL; one that is embedded is "
            "get-nano-cifar10"
        )
    return name


def _free_grid(name: str) -> Path:
    """A picture in the current folder that is called like the model and does not exist yet."""
    path = Path(name)
    if path.exists():
        path = path.resolve()  # "." has no name
    stem = path.stem if path.suffix == ".safetensors" else path.name or "samples"
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    return next(free for free in (Path(f"{each}.png") for each in names) if not free.exists())


def _check_out(out: Path, columns: int) -> None:
    if out.suffix.lower() in _OTHER_FILES:
        raise ValueError(
            f"--out is a folder, or a file that ends in {', '.join(_FILES)}; got {str(out)!r}"
        )
    if columns < 0 or (columns and out.suffix.lower() != ".png"):
        raise ValueError(f"--columns {columns}: a grid, OUT.png, has them, one or more")


def _check_channels(model: GenerativeModel, out: Path) -> None:
    if model.config.channels not in (1, 3) and out.suffix.lower() != ".npz":
        raise ValueError(
            f"this model gives {model.config.channels} channels, latents and no pixels: only an "
            f".npz keeps them, as float32 (N, C, H, W): --out OUT.npz, not {out}"
        )
