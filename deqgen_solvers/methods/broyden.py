"""Broyden's method: a quasi-Newton step whose Jacobian is learnt from the iterates themselves.

Letters: B samples, N unknowns, M pairs kept, K <= M filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from deqgen_solvers.methods.line_search import backtrack
from deqgen_solvers.methods.options import check_flag, check_memory
from deqgen_solvers.methods.window import Pairs, add_combination, products, write
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver

# A residual that grows a little is the usual way to a better B: a search that lets none grow takes
# 5 times the steps on an affine map of radius 0.999. One that doubles at every step is no such way.
_GROWTH = 2.0


@dataclass(frozen=True)
class BroydenState:
    """The window, and what it said of the residual before."""

    pairs: Pairs  # steps s, of length 1, and changes of f; their matrix is P - N
    g: Tensor  # (B, 1, N) the residual of the iterate before
    against: Tensor  # (B, 1, K) its products with the steps


@register_solver("broyden")
@dataclass(frozen=True, kw_only=True)
class Broyden:
    """Good Broyden with limited memory, on g(z) = f(z) - z.

    Starting from the Jacobian -I, which makes the first step Picard's, each pair of a step s and a
    change y of g corrects the approximation B by ``(y - B s) s^T / (s^T s)``, the least change for
    which ``B s = y``. The window slides: B is what these corrections give for the last ``memory``
    pairs, in order, from -I. Nothing is restarted.

    With the columns s_i in S and the changes of f in D, the corrections sum up to
    ``B = -I + D N^-1 S^T``, where N is the upper triangle of S^T S (older rows, newer columns), so
    the step -B^-1 g is ``g + D (N - P)^-1 S^T g`` with P = S^T D. All of it comes from inner
    products of vectors at hand, those with y from one product with each of the two residuals whose
    difference it is; recurrences over more than one step drift in float32 near a spectral radius of
    1. A step reads S once and D twice.

    Source: C. G. Broyden, Math. Comp. 19 (1965); compact form: R. H. Byrd, J. Nocedal and R. B.
    Schnabel, Math. Programming 63 (1994). On an affine map with N unknowns and memory
    2 N it ends in at most 2 N steps (D. M. Gay, SIAM J. Numer. Anal. 16, 1979), which is 2 N + 1
    evaluations.

    Args:
        memory: pairs kept, >= 1; each is 2 copies of the state. It counts differences, so it
            compares to Anderson's ``memory - 1``.
        line_search: halve the step of a sample, at most to 1/32, until its residual grows by less
            than a factor of two. It takes at least one more call of f a step, and pays where steps
            are far too long.

    Raises:
        OptionError: memory below 1.
        OptionTypeError: memory is no whole number, or line_search neither True nor False.
    """

    references: ClassVar[tuple[str, ...]] = ("broyden1965class", "byrd1994representations")
    memory: int = 16
    line_search: bool = False

    def __post_init__(self) -> None:
        check_memory("Broyden", self.memory)
        check_flag("Broyden", "line_search", self.line_search)

    def init(self, z0: Tensor) -> BroydenState:
        """Allocate the window for ``z0`` (B, N)."""
        nothing = z0.new_empty(len(z0), 1, 0)
        return BroydenState(Pairs.empty(z0, self.memory), nothing, nothing)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: BroydenState
    ) -> tuple[Tensor, BroydenState]:
        """Propose the next iterate (B, N)."""
        z, fz = z.unsqueeze(1), fz.unsqueeze(1)  # (B, 1, N) each
        last = state.pairs.last
        if last is None:
            z_next = fz
            state = replace(state, pairs=replace(state.pairs, last=(z, fz)), g=fz - z)
        else:
            z_next, state = self._propose(z, fz, state, *last)
        if self.line_search:
            return self._search(f, z, fz, z_next, last), state
        return z_next.squeeze(1), state

    def _propose(
        self, z: Tensor, fz: Tensor, state: BroydenState, last_z: Tensor, last_fz: Tensor
    ) -> tuple[Tensor, BroydenState]:
        """Take the full step (B, 1, N)."""
        first, second = state.pairs.room()
        s, change = torch.sub(z, last_z, out=first), torch.sub(fz, last_fz, out=second)
        pairs, s, change, scale = state.pairs.push(s, change, (z, fz))
        ds, df = pairs.vectors()  # (B, K, N) each
        g = fz - z  # (B, 1, N)
        against = products(ds, g)  # (B, 1, K)
        before = _with(state.against, pairs.newest, products(s, state.g))  # (B, 1, K)
        # Row of P: the newest step against older changes. Column of P - N: S^T y, where N has
        # entries only for steps not newer than the column's, and y is a difference of residuals.
        row, column = products(df, s).conj(), (against - before) * scale  # (B, 1, K) each
        pairs, weights = pairs.solve(row, column, against)  # (B, 1, K)
        return add_combination(fz, df, weights, -1), BroydenState(pairs, g, against)

    def _search(
        self,
        f: Function,
        z: Tensor,
        fz: Tensor,
        z_next: Tensor,
        last: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Go from z only so far towards z_next (B, 1, N) as the residual grows no more than twice.

        Returns:
            (B, N)
        """
        z, fz, z_next = z.squeeze(1), fz.squeeze(1), z_next.squeeze(1)  # (B, N) each
        level = _GROWTH * vector_norm(fz - z, dim=1)  # (B,)
        # A frozen sample has not moved; a search would find nothing and hold up the others.
        still = torch.zeros_like(level) > 0 if last is None else (z == last[0][:, 0]).all(dim=1)
        return backtrack(f, z, z_next - z, level, still)


def _with(line: Tensor, slot: int, value: Tensor) -> Tensor:
    """``line`` (B, 1, K) with ``value`` (B, 1, 1) in a slot, which may be one beyond its end."""
    if slot == line.shape[2]:
        return torch.cat((line, value), dim=2)
    return write(line, (slice(None), slice(None), slice(slot, slot + 1)), value)
