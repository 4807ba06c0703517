"""What a solve returns: the point, how good it is, and in a sentence why it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Status(IntEnum):
    """Why a sample stopped. ``str(status)`` is the sentence; ``Status(int(code))`` reads a code."""

    CONVERGED = 0
    MAX_STEPS = 1
    NONFINITE = 2
    STOPPED = 3
    BUDGET = 4

    @property
    def sentence(self) -> str:
        """The status in plain words."""
        return _SENTENCES[self]

    def __str__(self) -> str:
        return self.sentence


_SENTENCES = {
    Status.CONVERGED: "The residual met the tolerance.",
    Status.MAX_STEPS: "The step limit was reached before the residual met the tolerance.",
    Status.NONFINITE: "A value or a norm became NaN or infinite; an earlier iterate is returned.",
    Status.STOPPED: "The callback asked to stop before the residual met the tolerance.",
    Status.BUDGET: "The fixed budget was spent; no residual was measured (tol=None).",
}


@dataclass(frozen=True)
class Trace:
    """How the residuals fell.

    Attributes:
        residual: (T + 1, B) on the CPU; row t holds ||f(z) - z|| after t steps. NaN where the
            sample had already finished.
        rows: T + 1 numbers, the rows that f was evaluated on; they shrink under ``compact=True``.
    """

    residual: Tensor
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """What a callback sees after the first evaluation (step 0) and after each step.

    Attributes:
        step: steps taken so far.
        rows: (R,) int64 on the CPU; which samples the R rows of z and fz belong to.
        z: current iterates, in the structure of z0; finished rows are frozen.
        fz: f(z).
        residual: (R,) float64 on the CPU, ||f(z) - z|| a row; None when tol=None.
        running: (R,) bool on the CPU, False where the sample has finished; None when tol=None.
    """

    step: int
    rows: Tensor
    z: object
    fz: object
    residual: Tensor | None
    running: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Solution(Generic[T]):
    """The result of ``solve``; tensors are on the device of the state, one entry a sample.

    Attributes:
        z: the selected iterate, in the structure of z0. With tol=None, the last image of f.
        fz: f(z), already computed, in the same structure; None with tol=None.
        residual: (B,) Euclidean norm of fz - z, of f itself and of this very z; NaN for a sample
            whose f(z0) was not finite; None with tol=None.
        status: (B,) int64 codes of ``Status``.
        steps: (B,) int64, steps that the sample took. The selected iterate may be an earlier one.
        nfe: calls of f, exactly. A call on fewer rows (``compact=True``) counts as one.
        trace: residuals per step, when ``trace=True``.
    """

    z: T
    fz: T | None
    residual: Tensor | None
    status: Tensor
    steps: Tensor
    nfe: int
    trace: Trace | None = None

    @property
    def converged(self) -> Tensor:
        """(B,) bool; all False with tol=None, where nothing was tested."""
        return self.status == Status.CONVERGED

    def explain(self) -> str:
        """Return one line per status that occurs, with the number of samples. It synchronises."""
        codes = self.status.tolist()
        lines = (f"{codes.count(s)} of {len(codes)}: {s}" for s in Status if s in codes)
        return "\n".join(lines) or "The batch was empty."
