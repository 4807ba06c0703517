"""Trained models that ship with the package: no data set, no network.

``deqgen/assets/NAME.safetensors`` holds the weights in half precision, ``NAME.json`` the config and
``NAME.md`` what the model was trained on and how good it is. ``examples/export_student.py`` makes
all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from typing import Any

import torch

from deqgen.models.errors import UnknownModelError
from deqgen.models.files import load_model
from deqgen.models.protocol import GenerativeModel
from deqgen.teachers.names import unknown


@dataclass(frozen=True)
class Embedded:
    """A trained model among the assets.

    Args:
        file: name of its files, without the suffix.
        references: keys in ``deqgen/references.bib`` of what it was made with, beside those of its
            architecture, solver and gradient estimator.
    """

    file: str
    references: tuple[str, ...] = ()


EMBEDDED: Mapping[str, Embedded] = {
    "get-nano-cifar10": Embedded(
        "get_nano_cifar10",
        # Its teacher: EDM, sampled by DPM-Solver++, guided in an interval, on CIFAR-10.
        (
            "karras2022elucidating",
            "lu2022dpmsolverpp",
            "kynkaanniemi2024applying",
            "krizhevsky2009learning",
        ),
    ),
}


def embedded_models() -> list[str]:
    """Names of the trained models that ship with the package, sorted."""
    return sorted(EMBEDDED)


def open_embedded(
    name: str, *, device: torch.device | str = "cpu", **overrides: Any
) -> GenerativeModel:
    """Load a model of :func:`embedded_models`, in evaluation mode and in float32.

    Args:
        name: of the model.
        device: where the weights go.
        overrides: fields of the config in place of the saved ones, as for
            :func:`~deqgen.models.load_model`.

    Raises:
        UnknownModelError: (a ValueError) no embedded model has this name.
        TypeError: an override that the model does not have, or of the wrong type.
        ValueError: an override out of its range.
    """
    if name not in EMBEDDED:
        raise UnknownModelError(unknown("embedded model", name, EMBEDDED))
    asset = resources.files("deqgen") / "assets"
    with resources.as_file(asset) as folder:
        path = folder / f"{EMBEDDED[name].file}.safetensors"
        return load_model(path, device=device, **overrides).float()


def refuse_misspelt(name: str) -> None:
    """Refuse a name that is almost that of an embedded model.

    Raises:
        UnknownModelError: (a ValueError) naming the model that was meant.
    """
    if "/" not in name and get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.6):
        raise UnknownModelError(
            f"{unknown('embedded model', name, EMBEDDED)} A name on the Hub has an owner: "
            f"'owner/{name}'."
        )
