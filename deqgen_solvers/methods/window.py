"""A sliding window of vectors per sample, and the tiny linear systems that come from it.

Letters: B samples, N unknowns, M window length, K <= M vectors filled so far.
"""

from __future__ import annotations

import torch
from torch import Tensor


def empty_window(z: Tensor, memory: int) -> Tensor:
    """Return room for ``memory`` vectors like z (B, N): (B, M, N), not yet filled."""
    return z.new_empty(z.shape[0], memory, z.shape[1])


def empty_gram(z: Tensor, memory: int) -> Tensor:
    """Return room for the products of a window with itself: zeros (B, M, M) in `small_dtype`."""
    return torch.zeros(z.shape[0], memory, memory, dtype=small_dtype(z), device=z.device)


def small_dtype(z: Tensor) -> torch.dtype:
    """float64 or complex128, for small systems; single where a device has no double."""
    if z.device.type == "mps":
        return torch.complex64 if z.is_complex() else torch.float32
    return torch.complex128 if z.is_complex() else torch.float64


def write(buffer: Tensor, index: tuple[slice | int, ...], value: Tensor) -> Tensor:
    """``buffer[index] = value``; in place, unless a graph is being recorded through the buffer."""
    if torch.is_grad_enabled():
        buffer = buffer.clone()
    buffer[index] = value
    return buffer


def unit_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Divide two vectors (B, N) of each sample by the length of the first; they are used up.

    The differences that a window keeps shrink by orders of magnitude as a solve converges. Scaled,
    the newest count as much as the oldest, and nothing depends on the units of the state. A first
    vector of length zero (a frozen row, a constant history) stays zero.
    """
    length = torch.linalg.vector_norm(first, dim=1, keepdim=True)  # (B, 1)
    # Well above the least number, so that neither 1 / length nor its derivative overflows.
    inverse = length.clamp_min(torch.finfo(length.dtype).tiny ** 0.4).reciprocal()
    if torch.is_grad_enabled():  # a graph may need what they were
        return first * inverse, second * inverse
    return first.mul_(inverse), second.mul_(inverse)


def products(window: Tensor, *vectors: Tensor) -> list[Tensor]:
    """Inner products <w_i, v>, conjugated on the left: (B, K, N) and vectors (B, N) -> (B, K) each.

    Each is a row times the transposed window. On CPUs that is several times faster than the window
    times a column, and also than the window times all columns at once, which must be copied into
    one matrix first.
    """
    tall = window.transpose(1, 2)  # (B, N, K)
    # conj(<w, conj v>) conjugates the short factor and the result, not a copy of the window.
    rows = [torch.bmm(v.conj().unsqueeze(1), tall).squeeze(1) for v in vectors]
    return [row.conj().to(small_dtype(window)) for row in rows]


def combination(window: Tensor, coefficients: Tensor) -> Tensor:
    """Sum of K window vectors: (B, K, N) and (B, K) -> (B, N)."""
    return torch.bmm(coefficients.to(window.dtype).unsqueeze(1), window).squeeze(1)


def solve_small(matrix: Tensor, right: Tensor, ridge: float = 0.0) -> Tensor:
    """Solve ``matrix @ x = right`` for each sample; the window's vectors have length 1.

    Args:
        matrix: (B, K, K) products of window vectors.
        right: (B, K).
        ridge: added to the diagonal.

    Returns:
        (B, K); zeros for a sample whose system is singular or not finite, which leaves it with the
        plain step. Other samples are not touched.
    """
    matrix = matrix.clone()
    # Never quite 0: a vector of length zero has a zero row, and then gets 0 / least = 0.
    least = torch.finfo(matrix.dtype).tiny ** 0.6
    matrix.diagonal(dim1=1, dim2=2).add_(max(ridge, least))
    solution: Tensor = torch.linalg.solve_ex(matrix, right.unsqueeze(2))[0].squeeze(2)  # (B, K)
    spoilt = (solution * 0).sum(dim=1, keepdim=True) != 0  # (B, 1); NaN and infinity give NaN
    return solution.masked_fill(spoilt, 0)
