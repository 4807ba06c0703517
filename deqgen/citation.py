"""What to cite for what was used.

The BibTeX is in ``references.bib``. A solver, a gradient estimator or a model says in its attribute
``references`` what it rests on: keys of that file or, of one's own, whole BibTeX entries, which
begin with ``@``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import torch

from deqgen.gradients import GradientEstimator, make_gradient
from deqgen.models import EquilibriumModel, GenerativeModel, create_model, list_models
from deqgen.models.embedded import EMBEDDED, open_embedded
from deqgen.models.errors import UnknownModelError
from deqgen.teachers.names import unknown
from deqgen_solvers import Solver, make_solver

_FLAGSHIP = ("geng2023onestep", "karras2022elucidating", "bai2019deep")


def cite(
    model: str | GenerativeModel | None = None,
    solver: str | Solver[Any] | None = None,
    gradient: str | GradientEstimator | None = None,
) -> str:
    """BibTeX of the papers that what was used rests on, each once.

    A model with an equilibrium brings its own solver and gradient estimator unless others are
    given. Without arguments: the papers of the flagship, GET, EDM and deep equilibrium models.

    Args:
        model: a name of :func:`deqgen.models.list_models` or
            :func:`deqgen.models.embedded_models`, or a model.
        solver: a name or an object.
        gradient: a name or an object.

    Returns:
        Entries with an empty line between them; a line of comment for what names no reference.

    Raises:
        ValueError: an unknown name; the nearest one is suggested.
        TypeError: something that is neither a name nor what it should be.

    >>> print(cite(solver="gmres").splitlines()[0])
    @article{saad1986gmres,
    """
    if model is None and solver is None and gradient is None:
        return "\n\n".join(references()[key] for key in _FLAGSHIP)
    used: list[Any] = []
    extra: tuple[str, ...] = ()
    if model is not None:
        built, extra = _opened(model)
        used.append(built)
        if isinstance(built, EquilibriumModel):
            solver = built.deq.solver if solver is None else solver
            gradient = built.deq.gradient if gradient is None else gradient
    used += [] if solver is None else [make_solver(solver)]
    used += [] if gradient is None else [make_gradient(gradient)]
    entries = [entry for thing in used for entry in _entries(thing)]
    entries += [references()[key] for key in extra]
    return "\n\n".join(dict.fromkeys(entries))


@cache
def references() -> dict[str, str]:
    """The entries of ``references.bib``, by key."""
    text = (resources.files("deqgen") / "references.bib").read_text(encoding="utf-8")
    found = re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, flags=re.MULTILINE | re.DOTALL)
    return {entry[1]: entry[0] for entry in found}


def _entries(used: object) -> Iterator[str]:
    """The entries of an object, or a comment where it names none."""
    kind = type(used).__name__
    named: tuple[str, ...] = getattr(used, "references", ())
    if not named:
        yield f"% {kind} names no reference"
    for each in named:
        if not each.startswith("@") and each not in references():
            raise ValueError(unknown(f"reference of {kind}", each, references()))
        yield each if each.startswith("@") else references()[each]


def _opened(model: str | GenerativeModel) -> tuple[GenerativeModel, tuple[str, ...]]:
    """The model, without weights if a name will do, and what else it was made with."""
    if isinstance(model, GenerativeModel):
        return model, ()
    if not isinstance(model, str):
        raise TypeError(f"model: expected a name or a model, got {model!r}.")
    if model in EMBEDDED:
        return open_embedded(model), EMBEDDED[model].references
    names = [*list_models(), *EMBEDDED]
    if model not in names:
        raise UnknownModelError(unknown("model", model, names))
    with torch.device("meta"):
        return create_model(model), ()
