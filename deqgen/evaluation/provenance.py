"""The fingerprint of a number: all that must agree before it is compared with another."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deqgen.evaluation.frechet import NOT_STATED
from deqgen.versions import installed_version

QUANTISATION = "256 levels, as a saved PNG"


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a number was measured on, with what and against what. None: does not apply.

    Attributes:
        features: name of the feature network.
        features_hash: of its weights.
        reference: what the images were compared with.
        reference_hash: of its moments.
        reference_images: how many there were; 0 where the file does not say.
        split: the part of the data set that the reference is.
        images: how many were measured.
        source: the model's name, or the file of images.
        seeds: first and last, such as ``"0..49999"``; the order of the images is theirs.
        order: of images that exist, which the parts of the Inception score are cut from and the
            first of which are taken where not all are.
        labels: ``"uniform"`` (seed modulo classes), ``"random"`` (drawn by the seed's generator),
            ``"class 3"``, or None for an unconditional model.
        model_hash: of the weights.
        weights: which weights these are, such as ``"EMA of checkpoint 000000012800"``.
        solver: with its options.
        max_steps: most steps of the solver.
        tol: where a sample's solve ended before that.
        precision: of the generator; the features are always float32.
        kernel_subset_size: images a subset of the kernel distance.
        quantisation: of the images before they were looked at.
        deqgen: version, and the git commit where it runs from a checkout.
        torch: version.
    """

    features: str
    features_hash: str
    reference: str
    reference_hash: str
    reference_images: int
    split: str
    images: int
    source: str
    deqgen: str
    torch: str
    seeds: str | None = None
    order: str | None = None
    labels: str | None = None
    model_hash: str | None = None
    weights: str = NOT_STATED
    solver: str | None = None
    max_steps: int | None = None
    tol: str | None = None
    precision: str | None = None
    kernel_subset_size: int | None = None
    quantisation: str = QUANTISATION

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def summary(self, repeats: int = 1) -> str:
        """In short, for a terminal: the measure, what it is held against, and the images.

        Args:
            repeats: evaluations like this one, on the seeds that follow.
        """
        more = "" if repeats == 1 else f" (the first of {repeats} ranges)"
        made = [
            self.source,
            f"{self.images:,} images",
            f"seeds {self.seeds}{more}" if self.seeds else None,
            f"order {self.order}" if self.order else None,
            f"labels {self.labels}" if self.labels else None,
            f"weights {self.weights} {self.model_hash}" if self.model_hash else None,
            self.precision,
            self.quantisation,
        ]
        lines = {
            "features": f"{self.features} ({self.features_hash})",
            "reference": f"{self.reference}; split: {self.split} ({self.reference_hash})",
            "images": ", ".join(part for part in made if part),
            "versions": f"deqgen {self.deqgen}, torch {self.torch}",
        }
        return "\n".join(labelled(label, text) for label, text in lines.items())


def labelled(label: str, text: str) -> str:
    """A line that begins with a label, folded at a hundred columns."""
    return textwrap.fill(
        text,
        100,
        initial_indent=f"{label:<11}",
        subsequent_indent=" " * 11,
        break_long_words=False,
        break_on_hyphens=False,
    )


@cache
def deqgen_version() -> str:
    """The installed version and the git commit, as far as there are any; found once a process."""
    from deqgen.training.environment import describe_checkout  # training imports this package

    checkout = describe_checkout(Path(__file__).resolve().parent)
    said = installed_version() or "not installed"
    if checkout is None:
        return said
    changed = " with changes" if checkout["dirty"] else ""
    return f"{said}, git {checkout['commit'][:12]}{changed}"
