"""Residuals and sizes of iterates, brought to the host.

Letters: R rows, N unknowns of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def measure(norm: Callable[[Tensor], Tensor], z: Tensor, fz: Tensor) -> tuple[Tensor, Tensor]:
    """||f(z) - z|| and ||f(z)|| of each row, (R,) each, on the host."""
    return to_host(norm(fz - z), norm(fz))


def to_host(residual: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return both (R,) on the host, in the one transfer of a step."""
    if residual.device.type != "cpu":
        residual, size = torch.stack((residual, size)).cpu().unbind(0)
    return residual, size


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each row, (R, N) to (R,)."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1)
    return length


def scaled_norm(x: Tensor) -> Tensor:
    """The same where squares would leave the range of the dtype."""
    if x.shape[1] == 0:
        return norm(x)
    largest = x.abs().amax(1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1)
    length: Tensor = largest.squeeze(1) * norm(x / unit)
    return length


def underflows(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows that a residual may meet only because its squares underflowed.

    A square below the least normal number has lost digits. A residual made of such squares is at
    most sqrt(N * least), so with N up to 1e8 a threshold of 1e4 * sqrt(least) is safe from them.
    """
    return threshold < 1e4 * math.sqrt(torch.finfo(dtype).tiny)
