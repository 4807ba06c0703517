"""The mistakes that the model room can name."""

from __future__ import annotations

from collections.abc import Iterable

from deqgen_solvers.errors import nearest


class UnknownModelError(ValueError):
    """No model has this name."""


class ModelFileError(ValueError):
    """A file that holds no model, half a model, or another model than its config says."""


class UnsavableError(TypeError):
    """A config holds something that JSON cannot, such as a function."""


def unknown_option(owner: str, name: str, known: Iterable[str]) -> str:
    """One sentence: the option that does not exist, the nearest one and all of them."""
    known = list(known)
    return f"{owner} has no option {name!r}.{nearest(name, known)} Options: {', '.join(known)}."
