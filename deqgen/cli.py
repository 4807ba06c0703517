"""The ``deqgen`` command; ``python -m deqgen`` is the same.

One subcommand is one function below: its signature is its options, its docstring their help. Add it
to ``COMMANDS`` and it is there. What is heavy is imported inside, so that help is quick.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130

# A path that is wrong is a mistake like a name that is wrong; a full disk is none.
_MISTAKES = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


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
    kind: Literal["all", "models", "solvers", "gradients"] = "all",
) -> None:
    """List what can be asked for by name: models, solvers, gradient estimators.

    Args:
        pattern: Names that match it, such as "GET*"; upper and lower case are the same.
        kind: List one kind only.
    """
    from fnmatch import fnmatchcase

    from deqgen.gradients import available_gradients
    from deqgen.models import list_models
    from deqgen_solvers import available_solvers

    kinds = {"models": list_models, "solvers": available_solvers, "gradients": available_gradients}
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


COMMANDS: dict[str, Callable[..., None]] = {"convert-get": convert_get, "list": list_names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; default: those of the process.

    Returns:
        The exit status: 0, or 2 for a mistake of the user's and 1 for any other failure, both with
        a sentence on stderr, or 130 after Ctrl-C. ``DEQGEN_TRACEBACK=1`` lets errors through.
    """
    try:
        _parsed(arguments)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("deqgen: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILURE
    except Exception as error:
        if os.environ.get("DEQGEN_TRACEBACK"):
            raise
        return _told(error)
    return 0


def _parsed(arguments: Sequence[str] | None) -> Callable[[], None]:
    """The subcommand asked for, with its options; it has yet to run."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(function) for name, function in COMMANDS.items()},
                prog="deqgen",
                description="Deep equilibrium models for generation.",
                args=arguments,
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_unboxed(caught.getvalue())) from None
        raise
    return command


def _later(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A function of the same signature and help that returns the call instead of making it."""

    @functools.wraps(function)
    def bind(*positional: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **options)

    return bind


def _unboxed(text: str) -> str:
    """What tyro says about wrong options, without the frame that it draws around it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours
    framed = [line.strip("│| ") for line in plain.splitlines() if line.startswith(("│", "|"))]
    sections = re.split(r"[─-]{8,}", " ".join(framed) or plain)
    sentences = [" ".join(section.split()).rstrip(".") for section in sections]
    return ". ".join(sentence for sentence in sentences if sentence) + "."


def _told(error: Exception) -> int:
    """Say what went wrong, on one line; return the exit status."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, _MISTAKES):
        print(f"deqgen: {said}", file=sys.stderr)
        return MISTAKE
    print(
        f"deqgen: {type(error).__name__}: {said} (DEQGEN_TRACEBACK=1 shows where.)", file=sys.stderr
    )
    return FAILURE
