"""A sliding window of vectors per sample, and the tiny linear systems that come from it.

A vector is a row (B, 1, N), as batched products take it: for small states a view costs about as
much as a product.

Letters: B samples, N unknowns, M window length, K <= M vectors filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    last: tuple[Tensor, Tensor] | None = None  # z and f(z) of the iterate before, (B, 1, N) each
    taken: int = 0  # pairs so far, those included that have left the window
    slots: Slots = field(default_factory=lambda: Slots(), repr=False, compare=False)  # views

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
        """Where to write the next pair, (B, 1, N) each; None twice while a graph is recorded."""
        if _recording():
            return None, None
        return self.slots.pair(self, self.taken % self.first.shape[1])

    def push(
        self, first: Tensor, second: Tensor, last: tuple[Tensor, Tensor]
    ) -> tuple[Pairs, Tensor, Tensor, Tensor]:
        """Take in a pair, (B, 1, N) each, out of `room` if there was one.

        Returns:
            The window, the pair as scaled, and the scale (B, 1, 1).
        """
        first, second, scale = unit_pair(first, second)
        windows, taken = (self.first, self.second), self.taken + 1
        if _recording():
            slot = self.taken % self.first.shape[1]
            index = (slice(None), slice(slot, slot + 1))
            windows = write(self.first, index, first), write(self.second, index, second)
        return Pairs(*windows, self.small, last, taken, self.slots), first, second, scale

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
            row: the newest row of the matrix (B, 1, K).
            column: its newest column, as a row (B, 1, K).
            right: (B, 1, K).
            ridge: added to the diagonal, in the precision of the matrix.

        Returns:
            The window with its new matrix, and the solution (B, 1, K); see `solve_small`.
        """
        pairs, newest = self, self.newest
        if _recording():
            pairs = replace(self, small=self.small.clone())
        held = pairs.small  # (B, K, K)
        if self.taken >= held.shape[1] and pairs is self:
            row_slot, column_slot, corner = self.slots.lines(self, newest)
            row_slot.copy_(row)
            column_slot.copy_(column.mT)
        else:  # a recorded graph needs views made after what was written before
            held = held[:, : self.taken, : self.taken]
            held.narrow(1, newest, 1).copy_(row)
            corner = held.narrow(2, newest, 1).copy_(column.mT).select(1, newest)
        # Never quite 0: a pair of length zero has a zero row, and then gets 0 / least = 0.
        corner.add_(max(ridge, torch.finfo(held.dtype).tiny ** 0.6))
        return pairs, solve_small(held, right)


class Slots:
    """Views of where pairs are written, made when first needed and kept.

    This is no dataclass, so ``take_rows`` hands it on as it is; it begins anew when it finds that
    the buffers are others.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._small: Tensor | None = None

    def pair(self, held: Pairs, i: int) -> tuple[Tensor, Tensor]:
        """Return pair i, (B, 1, N) each."""
        self._fit(held)
        if i not in self._pairs:
            self._pairs[i] = held.first.narrow(1, i, 1), held.second.narrow(1, i, 1)
        return self._pairs[i]

    def lines(self, held: Pairs, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return row i (B, 1, M), column i (B, M, 1) of the small matrix, their entry (B, 1)."""
        self._fit(held)
        if i not in self._lines:
            column = held.small.narrow(2, i, 1)
            self._lines[i] = held.small.narrow(1, i, 1), column, column.select(1, i)
        return self._lines[i]

    def _fit(self, held: Pairs) -> None:
        if self._first is not held.first or self._small is not held.small:
            self._first, self._small = held.first, held.small
            self._pairs: dict[int, tuple[Tensor, Tensor]] = {}
            self._lines: dict[int, tuple[Tensor, Tensor, Tensor]] = {}


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


def unit_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divide two vectors (B, 1, N) of each sample by the length of the first; they are used up.

    A first vector of length zero (a frozen row, a constant history) stays zero.

    Returns:
        Both, and what they were multiplied by, (B, 1, 1).
    """
    length = torch.linalg.vector_norm(first, dim=2, keepdim=True)  # (B, 1, 1)
    # Well above the least number, so that neither a quotient nor its derivative overflows.
    scale = length.clamp_min(torch.finfo(length.dtype).tiny ** 0.4).reciprocal_()
    # To multiply takes half the time of a division.
    if _recording():  # a graph may need what they were
        return first * scale, second * scale, scale
    return first.mul_(scale), second.mul_(scale), scale


def products(window: Tensor, vector: Tensor) -> Tensor:
    """Inner products <w_i, v>, conjugated on the left: (B, K, N) and (B, 1, N) -> (B, 1, K).

    A row times the transposed window: on CPUs faster than the window times a column, unless the
    window has left the cache, and a second row in the same product more than doubles its time.
    """
    # conj(<w, conj v>) conjugates the short factor and the result, not a copy of the window.
    return torch.bmm(vector.conj(), window.mT).conj()


def combination(window: Tensor, coefficients: Tensor) -> Tensor:
    """Sum of K window vectors: (B, K, N) and (B, 1, K) -> (B, 1, N)."""
    return torch.bmm(coefficients.to(window), window)


def add_combination(vector: Tensor, window: Tensor, weights: Tensor, sign: int = 1) -> Tensor:
    """A vector (B, 1, N) plus, or minus, a `combination`, in one pass."""
    return torch.baddbmm(vector, weights.to(window), window, alpha=sign)


def solve_small(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``matrix @ x = right`` for each sample.

    Args:
        matrix: (B, K, K).
        right: (B, 1, K), of that dtype or less.

    Returns:
        (B, 1, K); zeros for a sample whose system is singular or not finite, which leaves it with
        the plain step. Other samples are not touched.
    """
    solution: Tensor = torch.linalg.solve_ex(matrix, right.to(matrix).mT)[0]  # (B, K, 1)
    total = solution.sum(dim=1, keepdim=True)  # (B, 1, 1)
    # 0 * total is NaN for a sample with NaN or infinity.
    return torch.add(solution, total, alpha=0).nan_to_num(0, 0, 0).mT


def _recording() -> bool:
    """Whether autograd or a compiler records what is done, so that nothing may be overwritten."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()
