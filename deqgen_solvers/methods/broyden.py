"""Broyden's method: a quasi-Newton step whose Jacobian is learnt from the iterates themselves.

Letters: B samples, N unknowns, M pairs kept, K <= M filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deqgen_solvers.methods.options import check_memory
from deqgen_solvers.methods.window import (
    combination,
    empty_gram,
    empty_window,
    products,
    solve_scaled,
    write,
)
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver


@dataclass(frozen=True)
class BroydenState:
    """Pairs (step, change of f), in ring buffers.

    As in Anderson, the slot after the newest pair holds the last z and f(z) themselves.
    """

    ds: Tensor  # (B, M, N) steps s = z_new - z_old
    df: Tensor  # (B, M, N) changes f(z_new) - f(z_old)
    small: Tensor  # (B, M, M) the matrix N - P of the class docstring
    squares: Tensor  # (B, M) ||s||^2
    steps: int  # steps taken


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
    the step -B^-1 g is ``g + D (N - P)^-1 S^T g`` with P = S^T D, all of it from inner products
    computed directly; recurrences for them drift in float32 near a spectral radius of 1.

    Source: C. G. Broyden, Math. Comp. 19 (1965); compact form: R. H. Byrd, J. Nocedal and R. B.
    Schnabel, Math. Programming 63 (1994). On an affine map with N unknowns and memory
    2 N it ends in at most 2 N steps (D. M. Gay, SIAM J. Numer. Anal. 16, 1979), which is 2 N + 1
    evaluations.

    Args:
        memory: pairs kept, >= 1; each is 2 copies of the state. It counts differences, so it
            compares to Anderson's ``memory - 1``.

    Raises:
        OptionError: memory below 1.
        OptionTypeError: memory is no whole number.
    """

    memory: int = 16

    def __post_init__(self) -> None:
        check_memory("Broyden", self.memory)

    def init(self, z0: Tensor) -> BroydenState:
        """Allocate the window for ``z0`` (B, N)."""
        small = empty_gram(z0, self.memory)
        squares = small.new_zeros(small.shape[:2]).real
        ds, df = empty_window(z0, self.memory), empty_window(z0, self.memory)
        return BroydenState(ds, df, small, squares, 0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: BroydenState
    ) -> tuple[Tensor, BroydenState]:
        """Propose the next iterate (B, N)."""
        steps, ds, df, small, squares = (
            state.steps,
            state.ds,
            state.df,
            state.small,
            state.squares,
        )
        z_next = fz
        if steps > 0:
            newest = (steps - 1) % self.memory
            filled = min(steps, self.memory)
            s = z - ds[:, newest]  # (B, N)
            change = fz - df[:, newest]  # (B, N)
            g = fz - z  # (B, N)
            ds = write(ds, (slice(None), newest), s)
            df = write(df, (slice(None), newest), change)
            # Row of P: the newest step against older changes. Column of N - P: S^T (s - change),
            # where N has entries only for steps not newer than the column's.
            row = products(df[:, :filled], s, s)[:, :, 0].conj()  # (B, K)
            dots = products(ds[:, :filled], s - change, g)  # (B, K, 2)
            small = write(small, (slice(None), newest, slice(filled)), -row)
            small = write(small, (slice(None), slice(filled), newest), dots[:, :, 0])
            square = products(s.unsqueeze(1), s, s)[:, 0, 0].real  # (B,)
            squares = write(squares, (slice(None), newest), square)
            weights = solve_scaled(small[:, :filled, :filled], dots[:, :, 1], squares[:, :filled])
            z_next = fz + combination(df[:, :filled], weights)
        ds = write(ds, (slice(None), steps % self.memory), z)
        df = write(df, (slice(None), steps % self.memory), fz)
        return z_next, BroydenState(ds, df, small, squares, steps + 1)
