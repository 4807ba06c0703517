"""deqgen evaluate: how good are these images, and at what cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
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
        source: A model (.safetensors, folder, training run, name on the Hub), or images: a zip, a
            folder, an .npz with arr_0.
        features: The network that looks at the images: a name, a file or a URL.
        reference: What to compare with: cifar10 (its training images, for the features cifar10), an
            .npz with mu and sigma, or images.
        count: Images in all; default: 50,000 of a model, all that there are of a file.
        metrics: Of fd kid is pr dc: Frechet distance, kernel distance, Inception score, precision
            and recall, density and coverage.
        seed_start: Seed of the first image of a model.
        repeats: Evaluations on different seeds, to see min, mean and max; papers often report the
            least of three.
        labels: Classes of a conditional model: uniform, random, or the number of one. Default:
            uniform.
        max_steps: Most evaluations of the equilibrium's cell; several make a sweep.
        solver: Names of solvers; several make a sweep.
        tol: Relative residual at which an image's solve ends; 0 spends the whole budget.
        batch_size: Images at a time.
        device: Such as cuda:1 or cpu; auto takes the process's own GPU where there is one.
        precision: Of the model; the features are in float32 in any case.
        out: A .json file for all numbers and fingerprints.
    """
    import warnings

    from deqgen.evaluation import FewSamplesWarning, check_metrics, is_images
    from deqgen.processes import processes

    check_metrics(metrics)
    if out is not None:
        if out.suffix != ".json":
            raise ValueError(f"--out is a .json file, got {str(out)!r}")
        out.parent.mkdir(parents=True, exist_ok=True)
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
            options = {**shared, **for_models}
            found = _measure_model(source, features, reference, count, options, together)
        if together.rank == 0:
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
    model = open_model(source, device=together.device)
    return sweep_model(
        model,
        features,
        reference,
        ENOUGH if count is None else count,
        solvers=options.pop("solver") or (None,),
        max_steps=options.pop("max_steps") or (None,),
        name=source,
        weights=_weights(Path(source)),
        processes=together,
        progress=together.rank == 0,
        **options,
    )


def _weights(source: Path) -> str:
    """Which weights :func:`open_model` takes."""
    averaged = (source / "checkpoints").exists() or (source / "ema.safetensors").exists()
    return "EMA" if averaged or source.stem == "ema" else f"as saved in {source.name}"


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
    from deqgen.atomic import write_text
    from deqgen.evaluation.provenance import labelled
    from deqgen.evaluation.result import ENOUGH, few_samples
    from deqgen.evaluation.table import images_table, sweep_table

    first = found[0].evaluations[0] if isinstance(found, list) else found
    print(sweep_table(found) if isinstance(found, list) else images_table(found))
    repeats = len(found[0].evaluations) if isinstance(found, list) else 1
    print("", first.fingerprint.summary(repeats), sep="\n")
    for name, reason in first.left_out.items():
        print(labelled("left out", f"{name}: {reason}"))
    sys.stdout.flush()
    if out is not None:
        rows = [row.to_dict() for row in found] if isinstance(found, list) else [found.to_dict()]
        write_text(out, json.dumps({"rows": rows}, indent=2, allow_nan=False) + "\n")
        print(labelled("written", str(out)))
    if first.fingerprint.images < ENOUGH:
        print(f"deqgen: {few_samples(first.fingerprint.images)}.", file=sys.stderr)
