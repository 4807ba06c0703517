"""Commands about models: convert a released checkpoint, list what has a name, cite it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg


def convert_get(
    checkpoint: Annotated[Path, arg(metavar="CHECKPOINT")],
    out: Annotated[Path, arg(metavar="OUT")],
    /,
    weights: Literal["ema", "model"] = "ema",
    heads: int = 0,
) -> None:
    """Convert a released checkpoint of locuslab/get, a GET or a ViT, conditional or not.

    Nothing in the checkpoint is run. Every name and shape is checked.

    Args:
        checkpoint: The file, as downloaded.
        out: A .safetensors file to write, with its config in .json beside it; or a folder, with a
            model card, for from_pretrained and the Hub.
        weights: The average that the paper evaluates, or the trained weights.
        heads: Attention heads; 0 works them out. Needed only for a width that the paper does not
            have, where the checkpoint names no published model.
    """
    from deqgen.models.files import load_model
    from deqgen.models.official import convert_get as convert
    from deqgen.models.protocol import parameter_count

    path = convert(checkpoint, out, weights, heads=heads or None)
    model = load_model(path)
    config = model.config
    classes = f"{config.num_classes} classes" if config.num_classes else "unconditional"
    print(
        f"{path}: {model.architecture}, {config.image_size}x{config.image_size}, {classes}, "
        f"{parameter_count(model):,} parameters, from {weights!r}."
    )


def list_names(
    pattern: Annotated[str, arg(metavar="PATTERN")] = "*",
    /,
    kind: Literal["all", "models", "embedded", "teachers", "solvers", "gradients"] = "all",
) -> None:
    """List what has a name: models to train, embedded (trained) ones, teachers, solvers, gradients.

    Args:
        pattern: Names that match it, such as "GET*"; upper and lower case are the same.
        kind: List one kind only.
    """
    from fnmatch import fnmatchcase

    from deqgen.gradients import available_gradients
    from deqgen.models import embedded_models, list_models
    from deqgen.teachers import available_teachers
    from deqgen_solvers import available_solvers

    kinds = {
        "models": list_models,
        "embedded": embedded_models,
        "teachers": available_teachers,
        "solvers": available_solvers,
        "gradients": available_gradients,
    }
    asked = kinds if kind == "all" else {kind: kinds[kind]}
    found = {
        kind: [name for name in names() if fnmatchcase(name.lower(), pattern.lower())]
        for kind, names in asked.items()
    }
    if not any(found.values()):
        raise ValueError(f"nothing among the {', '.join(asked)} matches {pattern!r}.")
    for heading, names in found.items():
        if names:
            print(f"{heading}:", *names, sep="\n  ")


def cite(model: str | None = None, solver: str | None = None, gradient: str | None = None) -> None:
    """Print the BibTeX of what was used; without options that of GET, EDM and DEQs.

    Args:
        model: Name of a model, such as GET-B/2 or get-nano-cifar10.
        solver: Name of a solver; default: the model's.
        gradient: Name of a gradient estimator; default: the model's.
    """
    from deqgen.citation import cite as entries

    print(entries(model, solver, gradient))
