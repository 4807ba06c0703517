"""What an evaluation returns: the numbers, and all that must be known to compare them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deqgen.evaluation.provenance import Fingerprint

ENOUGH = 50_000


class FewSamplesWarning(UserWarning):
    """Fewer images were measured than others measure, so that the numbers do not compare."""


@dataclass(frozen=True)
class Evaluation:
    """Numbers with their fingerprint.

    Attributes:
        metrics: by name, such as ``{"fid": 6.9}`` or ``{"fd_cifar10": 3.1}``; see
            :mod:`deqgen.evaluation.metrics`. Empty in processes other than that of rank 0.
        fingerprint: what they were measured on, with what and against what.
        left_out: metrics that were asked for and could not be had, with the reason.
        nfe: evaluations of the equilibrium's cell that an image took, their mean: one a step, and
            the first (see :class:`deqgen.sampling.Batch`). 1 for a model without an equilibrium,
            None where no model was run.
        seconds: that it took, generation and features included.
    """

    metrics: Mapping[str, float]
    fingerprint: Fingerprint
    left_out: Mapping[str, str] = field(default_factory=dict)
    nfe: float | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "metrics": dict(self.metrics),
            "left_out": dict(self.left_out),
            "nfe": self.nfe,
            "seconds": round(self.seconds, 3),
            "fingerprint": self.fingerprint.to_dict(),
        }


def warn_of_few(count: int) -> None:
    """Say so below 50,000 images, which published numbers are measured on."""
    if count < ENOUGH:
        warnings.warn(few_samples(count), FewSamplesWarning, stacklevel=4)


def few_samples(count: int) -> str:
    """The sentence of :class:`FewSamplesWarning`."""
    return (
        f"{count:,} images are fewer than the {ENOUGH:,} that published numbers are measured on: "
        "a Frechet distance comes out too large, so compare equal counts only"
    )
