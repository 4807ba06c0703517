"""A sliding window of vectors per sample, and the tiny linear systems that come from it.

Letters: B samples, N unknowns, M window length, K <= M vectors filled so far, Q vectors at once.
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


def products(window: Tensor, *vectors: Tensor) -> Tensor:
    """Inner products <w_i, v_j>, conjugated on the left: (B, K, N) and Q times (B, N) -> (B, K, Q).

    One pass over the window, whatever Q: reading it is what costs.
    """
    right = torch.stack(vectors, dim=1).transpose(1, 2)  # (B, N, Q)
    # conj(<w, conj v>) conjugates the short factor and the result, not a copy of the window.
    return torch.bmm(window, right.conj()).conj().to(small_dtype(window))


def combination(window: Tensor, coefficients: Tensor) -> Tensor:
    """Sum of K window vectors: (B, K, N) and (B, K) -> (B, N)."""
    return torch.bmm(coefficients.to(window.dtype).unsqueeze(1), window).squeeze(1)


def solve_scaled(matrix: Tensor, right: Tensor, squares: Tensor, ridge: float = 0.0) -> Tensor:
    """Solve ``matrix @ x = right`` for each sample, after scaling the window's vectors to length 1.

    The vectors of a window shrink by orders of magnitude as a solve converges; scaled, the newest
    count as much as the oldest and the answer does not depend on the units of the state.

    Args:
        matrix: (B, K, K) products of window vectors.
        right: (B, K).
        squares: squared lengths of the vectors, (B, K), real. A vector of length zero (a frozen
            row, a constant history) gets the coefficient 0.
        ridge: added to the diagonal of the scaled matrix.

    Returns:
        (B, K); zeros for a sample whose system is singular or not finite, which leaves it with the
        plain step. Other samples are not touched.
    """
    # Below this, 1 / length would overflow; such vectors stay shorter than 1 and weigh nothing.
    least = torch.finfo(squares.dtype).tiny ** 0.6
    unit = squares.clamp_min(least).rsqrt()  # (B, K)
    scaled = matrix * unit.unsqueeze(2) * unit.unsqueeze(1)  # (B, K, K)
    # Never quite 0: a vector of length zero has a zero row, and then gets 0 / least = 0.
    scaled.diagonal(dim1=1, dim2=2).add_(max(ridge, least))
    solution = torch.linalg.solve_ex(scaled, (right * unit).unsqueeze(2))[0].squeeze(2) * unit
    finite = (solution * 0).sum(dim=1, keepdim=True) == 0  # (B, 1); NaN and infinity give NaN
    return torch.where(finite, solution, 0)
