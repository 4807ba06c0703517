"""A sliding window of vectors per sample, and the tiny linear systems that come from it.

Letters: B samples, N unknowns, M window length, K <= M vectors filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """The last M pairs of differences from iterate to iterate, in ring buffers.

    Both vectors of a pair are divided by the length of the first, which changes neither the space
    that they span nor any quotient of them: differences shrink by orders of magnitude as a solve
    converges, and scaled, the newest count as much as the oldest in the small system.
    """

    first: Tensor  # (B, M, N), of length 1
    second: Tensor  # (B, M, N)
    small: Tensor  # (B, M, M) the method's small matrix, from products of the vectors
    last: tuple[Tensor, Tensor] | None = None  # z and f(z) of the iterate before, (B, N) each
    taken: int = 0  # pairs so far, those included that have left the window

    @staticmethod
    def empty(z: Tensor, memory: int) -> Pairs:
        """Return room for ``memory`` pairs of vectors like z (B, N)."""
        small = torch.zeros(z.shape[0], memory, memory, dtype=small_dtype(z), device=z.device)
        return Pairs(empty_window(z, memory), empty_window(z, memory), small)

    @property
    def newest(self) -> int:
        """Slot of the newest pair."""
        return (self.taken - 1) % self.first.shape[1]

    def room(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Where to write the next pair, (B, N) each; None twice while a graph is recorded."""
        if _recording():
            return None, None
        slot = self.taken % self.first.shape[1]
        return self.first.select(1, slot), self.second.select(1, slot)

    def push(
        self, first: Tensor, second: Tensor, last: tuple[Tensor, Tensor]
    ) -> tuple[Pairs, Tensor, Tensor]:
        """Take in a pair (B, N) each, which lies in `room` if there was one; return it scaled."""
        first, second = unit_pair(first, second)
        windows, taken = (self.first, self.second), self.taken + 1
        if _recording():
            index = (slice(None), self.taken % self.first.shape[1])
            windows = write(self.first, index, first), write(self.second, index, second)
        return Pairs(*windows, self.small, last, taken), first, second

    def vectors(self) -> tuple[Tensor, Tensor]:
        """First and second vectors held, (B, K, N) each."""
        if self.taken >= self.first.shape[1]:
            return self.first, self.second
        return self.first[:, : self.taken], self.second[:, : self.taken]

    def solve(
        self, row: Tensor, column: Tensor, right: Tensor, ridge: float = 0.0
    ) -> tuple[Pairs, Tensor]:
        """Enter the newest pair into the small matrix and solve it for ``right``.

        Args:
            row: the newest row of the matrix (B, K).
            column: its newest column (B, K).
            right: (B, K).
            ridge: added to the diagonal, in the precision of the matrix.

        Returns:
            The window with its new matrix, and the solution (B, K); see `solve_small`.
        """
        small, newest = self.small, self.newest
        if _recording():
            small = small.clone()
        held = small if self.taken >= small.shape[1] else small[:, : self.taken, : self.taken]
        held.select(1, newest).copy_(row)
        corner = held.select(2, newest).copy_(column).select(1, newest)
        # Never quite 0: a pair of length zero has a zero row, and then gets 0 / least = 0.
        corner.add_(max(ridge, torch.finfo(small.dtype).tiny ** 0.6))
        pairs = self if small is self.small else replace(self, small=small)
        return pairs, solve_small(held, right)


def empty_window(z: Tensor, memory: int) -> Tensor:
    """Return room for ``memory`` vectors like z (B, N): (B, M, N), not yet filled."""
    return z.new_empty(z.shape[0], memory, z.shape[1])


def small_dtype(z: Tensor) -> torch.dtype:
    """float64 or complex128, for small systems; single where a device has no double."""
    if z.device.type == "mps":
        return torch.complex64 if z.is_complex() else torch.float32
    return torch.complex128 if z.is_complex() else torch.float64


def write(buffer: Tensor, index: tuple[slice | int, ...], value: Tensor) -> Tensor:
    """``buffer[index] = value``; in place, unless a graph is recorded."""
    if _recording():
        buffer = buffer.clone()
    buffer[index] = value
    return buffer


def unit_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Divide two vectors (B, N) of each sample by the length of the first; they are used up.

    A first vector of length zero (a frozen row, a constant history) stays zero.
    """
    length = torch.linalg.vector_norm(first, dim=1, keepdim=True)  # (B, 1)
    # Well above the least number, so that neither a quotient nor its derivative overflows.
    length = length.clamp_min(torch.finfo(length.dtype).tiny ** 0.4)
    if _recording():  # a graph may need what they were
        return first / length, second / length
    return first.div_(length), second.div_(length)


def products(window: Tensor, vector: Tensor) -> Tensor:
    """Inner products <w_i, v>, conjugated on the left: (B, K, N) and (B, N) -> (B, K).

    A row times the transposed window: on CPUs faster than the window times a column, unless the
    window has left the cache, and a second row in the same product more than doubles its time.
    """
    # conj(<w, conj v>) conjugates the short factor and the result, not a copy of the window.
    row = torch.bmm(vector.conj().unsqueeze(1), window.transpose(1, 2)).squeeze(1)
    return row.conj()


def combination(window: Tensor, coefficients: Tensor) -> Tensor:
    """Sum of K window vectors: (B, K, N) and (B, K) -> (B, N)."""
    return torch.bmm(coefficients.to(window.dtype).unsqueeze(1), window).squeeze(1)


def add_combination(vector: Tensor, window: Tensor, weights: Tensor, sign: int = 1) -> Tensor:
    """A vector (B, N) plus, or minus, a `combination`, in one pass."""
    row = weights.to(window.dtype).unsqueeze(1)  # (B, 1, K)
    return torch.baddbmm(vector.unsqueeze(1), row, window, alpha=sign).squeeze(1)


def solve_small(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix @ x = right`` for each sample.

    Args:
        matrix: (B, K, K).
        right: (B, K), of that dtype or less.

    Returns:
        (B, K); zeros for a sample whose system is singular or not finite, which leaves it with the
        plain step. Other samples are not touched.
    """
    right = right.to(matrix.dtype).unsqueeze(2)
    solution: Tensor = torch.linalg.solve_ex(matrix, right)[0].squeeze(2)  # (B, K)
    total = solution.sum(dim=1, keepdim=True)  # (B, 1)
    spoilt = total - total  # 0, and NaN for a row with NaN or infinity
    return (solution + spoilt).nan_to_num(0, 0, 0)


def _recording() -> bool:
    """Whether autograd or a compiler records what is done, so that nothing may be overwritten."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()
