"""The door of this room: what a diffusion model must look like to be a teacher.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """The best guess of a clean image, given a noisy one.

    ``denoiser(x, sigma, label) -> x0`` with

    - ``x``: clean images in about [-1, 1] plus ``sigma`` times standard normal noise, ``(B, C, H,
      W)``;
    - ``sigma``: the standard deviation of that noise, positive, one a sample, ``(B,)``;
    - ``label``: ``(B,)`` int64, or ``None`` for the unconditional estimate. A network trained for
      guidance also takes the index ``num_classes`` for "no class", so that rows with and without a
      class fit in one batch; it then has an attribute ``num_classes``.
    - ``x0``: an estimate of E[clean | x, sigma, label], ``(B, C, H, W)`` (EDM, arXiv 2206.00364,
      equation 3).

    Row i of the result depends on row i of the inputs alone.
    """

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor: ...


class CountingDenoiser:
    """A denoiser that counts what it is asked for.

    Attributes:
        calls: times it was called.
        rows: images it was given in all; ``rows / B`` is the number of function evaluations (NFE)
            an image has cost, however evaluations were batched.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        """Pass on to the wrapped denoiser; same arguments and result."""
        self.calls += 1
        self.rows += len(x)
        return self.denoiser(x, sigma, label)
