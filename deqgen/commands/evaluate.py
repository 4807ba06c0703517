"""deqgen evaluate: how good are these images, and at what cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from deqgen.evaluation import Evaluation, SweepRow
    from deqgen.processes import Processes


def evaluate(
    source: Annotated[str, arg(metavar="MODEL|IMAGES")],
    /,
    features: str = "cifar10",
    reference: str = "cifar10",
    count: int | None = None,
    metrics: tuple[str, ...] = ("fd", "is"),
    seed_start: int = 0,
    repeats: int = 1,
    labels: str | None = None,
    max_steps: tuple[int, ...] = (),
    solver: tuple[str, ...] = (),
    tol: float | None = None,
    batch_size: int = 256,
    device: str = "auto",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    out: Path | None = None,
) -> None:
    """Measure a model or a set of images: Frechet and kernel distance, Inception score and more.

    Every number is printed with what it was measured on, with what and against what. Several values
    of --solver and --max-steps make a table of quality against compute. With several GPUs:
    torchrun --standalone --nproc_per_node=N -m deqgen evaluate MODEL ...

    Args:
        source: A model (embedded, .safetensors, folder, training run, name on the Hub), or images:
            a zip, a folder, an .npz with arr_0.
        features: The network that looks at the images: a name, a file or a URL.
        reference: What to compare with: cifar10 (its training images, for the features cifar10), an
            .npz with mu and sigma, or images.
        count: Images in all; default: 50,000 of a model, all that there are of a file. Fewer of a
            file are drawn from all of it, always the same.
        metrics: Of fd kid is pr dc: Frechet distance, kernel distance, Inception score, precision
            and recall, density and coverage.
        seed_start: Seed of the first image of a model.
        repeats: Evaluations on different seeds, to see min, mean and max; papers often report the
            least of three.
        labels: Classes of a conditional model: uniform, random, 3, 0-9 or 0,1,2. Default:
            uniform.
        max_steps: Most evaluations of the equilibrium's cell; several make a sweep.
        solver: Names of solvers; several make a sweep.
        tol: Relative residual at which an image's solve ends; 0 spends the whole budget.
        batch_size: Images at a time.
        device: Such as cuda:1 or cpu; auto takes the process's own GPU where there is one.
        precision: Of the model; the features are in float32 in any case.
        out: A .json file for all numbers and fingerprints; of a sweep it grows row by row. A file
            that exists is not replaced.
    """
    import warnings

    from deqgen.evaluation import FewSamplesWarning, check_metrics, is_images
    from deqgen.processes import processes

    check_metrics(metrics)
    if out is not None:
        _check_out(out)
    shared: dict[str, Any] = {"metrics": metrics, "batch_size": batch_size}
    for_models: dict[str, Any] = {
        "seed_start": seed_start,
        "repeats": repeats,
        "labels": labels,
        "max_steps": max_steps,
        "solver": solver,
        "tol": tol,
        "precision": precision,
    }
    with processes(device) as together, warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)  # said once, below the numbers
        if is_images(source) or Path(source).suffix in (".zip", ".npz"):
            _refuse_model_options(source, for_models, together)
            found: Evaluation | list[SweepRow] = _measure_images(
                source, features, reference, count, shared, together
            )
        else:
            save = partial(_save, out=out) if out is not None and together.rank == 0 else None
            options = {**shared, **for_models, "after_row": save}
            found = _measure_model(source, features, reference, count, options, together)
        if together.rank == 0:
            if out is not None and not isinstance(found, list):
                _save([found], out)
            _tell(found, out)


def _measure_images(
    source: str,
    features: str,
    reference: str,
    count: int | None,
    options: dict[str, Any],
    together: Processes,
) -> Evaluation:
    from deqgen.evaluation import evaluate_images

    return evaluate_images(
        source, features, reference, count, **options, device=together.device, progress=True
    )


def _measure_model(
    source: str,
    features: str,
    reference: str,
    count: int | None,
    options: dict[str, Any],
    together: Processes,
) -> list[SweepRow]:
    from deqgen.evaluation import sweep_model
    from deqgen.evaluation.result import ENOUGH
    from deqgen.models.opening import open_model
    from deqgen_solvers import Tolerance

    tol = options.pop("tol")
    if tol is not None:
        options["tol"] = Tolerance(atol=0.0, rtol=tol) if tol else None
    checkpoint = _checkpoint(Path(source))
    model = open_model(checkpoint or source, device=together.device)
    return sweep_model(
        model,
        features,
        reference,
        ENOUGH if count is None else count,
        solvers=options.pop("solver") or (None,),
        max_steps=options.pop("max_steps") or (None,),
        name=source,
        weights=_weights(Path(source), checkpoint),
        processes=together,
        progress=together.rank == 0,
        **options,
    )


def _checkpoint(source: Path) -> Path | None:
    """The checkpoint that a folder of a training run stands for, so that it can be named."""
    from deqgen.training.checkpoint import Checkpoints

    if not source.is_dir():
        return None
    if (source / "ema.safetensors").exists():
        return source.resolve()  # not "latest", which is another one tomorrow
    run = source.parent if source.name == "checkpoints" else source
    return Checkpoints(run).newest()


def _weights(source: Path, checkpoint: Path | None) -> str:
    """Which weights :func:`open_model` takes, of a source or of the checkpoint that it is."""
    if checkpoint is not None:
        return f"EMA of checkpoint {checkpoint.name}"
    if source.name != "ema.safetensors":
        return f"as saved in {source.name}"
    folder = source.resolve().parent
    return f"EMA of checkpoint {folder.name}" if folder.parent.name == "checkpoints" else "EMA"


def _check_out(out: Path) -> None:
    """Refuse a file that could not be written, before the long part."""
    from deqgen.data.sample_writers import check_free

    if out.suffix != ".json":
        raise ValueError(f"--out is a .json file, got {str(out)!r}")
    check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from None


def _save(rows: Sequence[Evaluation | SweepRow], out: Path) -> None:
    """Write all numbers so far; a failure leaves those of before."""
    from deqgen.atomic import write_text

    plain = {"rows": [row.to_dict() for row in rows]}
    write_text(out, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _refuse_model_options(source: str, options: dict[str, Any], together: Processes) -> None:
    default = {"seed_start": 0, "repeats": 1, "precision": "float32"}
    given = [name for name, value in options.items() if value not in ((), None, default.get(name))]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{source} is a set of images, and {names} says how a model makes images")
    if together.world > 1:
        raise ValueError(
            f"{source} is a set of images, which one process measures; start it without torchrun"
        )


def _tell(found: Evaluation | list[SweepRow], out: Path | None) -> None:
    from deqgen.evaluation.provenance import labelled
    from deqgen.evaluation.result import ENOUGH, few_samples
    from deqgen.evaluation.table import images_table, sweep_table

    first = found[0].evaluations[0] if isinstance(found, list) else found
    print(sweep_table(found) if isinstance(found, list) else images_table(found))
    repeats = len(found[0].evaluations) if isinstance(found, list) else 1
    print("", first.fingerprint.summary(repeats), sep="\n")
    for name, reason in first.left_out.items():
        print(labelled("left out", f"{name}: {reason}"))
    if out is not None:
        print(labelled("written", str(out)))
    sys.stdout.flush()
    if first.fingerprint.images < ENOUGH:
        print(f"deqgen: {few_samples(first.fingerprint.images)}.", file=sys.stderr)
