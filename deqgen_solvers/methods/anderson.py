"""Anderson acceleration: combine past iterates so that the combined residual is least.

Letters: B samples, N unknowns, M differences kept, K <= M filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deqgen_solvers.methods.options import check_damping, check_memory, check_ridge
from deqgen_solvers.methods.window import (
    combination,
    empty_gram,
    empty_window,
    products,
    solve_small,
    unit_pair,
    write,
)
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver


@dataclass(frozen=True)
class AndersonState:
    """Differences of consecutive iterates, in ring buffers, and what the next ones start from.

    A pair of differences is divided by the length of its dr, which changes neither the space that
    they span nor the answer.
    """

    dr: Tensor  # (B, M, N) differences of r = f(z) - z, of length 1
    du: Tensor  # (B, M, N) differences of u = z + damping * r
    gram: Tensor  # (B, M, M) <dr_i, dr_j>
    last: tuple[Tensor, Tensor] | None  # r and u of the iterate before, (B, N) each
    steps: int  # steps taken


@register_solver("anderson")
@dataclass(frozen=True, kw_only=True)
class Anderson:
    """Type-II Anderson acceleration in difference form.

    With residuals r_k = f(z_k) - z_k and u_k = z_k + damping * r_k, the next iterate is
    ``u_k - sum_j gamma_j (u_j+1 - u_j)``, where gamma minimises
    ``||r_k - sum_j gamma_j (r_j+1 - r_j)||`` over the last ``memory`` iterates. On an affine map
    with unlimited memory it does what GMRES does. Each sample has its own gamma.

    Source: D. G. Anderson, J. ACM 12 (1965); H. F. Walker and P. Ni, SIAM J. Numer. Anal. 49
    (2011), equation 2.3 and theorem 2.2. The ridge is ours: it is added to a Gram matrix of unit
    diagonal, so that it means the same at every scale of the state and for old, long differences as
    for new, short ones.

    Args:
        memory: iterates combined, the current one included, >= 1. So ``memory=1`` is Picard, and
            ``memory=m`` keeps m - 1 differences: 2 * (m - 1) copies of the state.
        damping: length of the residual's part, in (0, 1]; 1 is undamped.
        ridge: relative ridge of the least-squares problem, >= 0. None takes the rounding unit of
            the inner products: about 1e-7 for states of float32 and less, 2e-16 for float64.

    Raises:
        OptionError: an option out of range.
        OptionTypeError: an option of the wrong type.
    """

    memory: int = 5
    damping: float = 1.0
    ridge: float | None = None

    def __post_init__(self) -> None:
        check_memory("Anderson", self.memory)
        check_damping("Anderson", self.damping)
        check_ridge("Anderson", self.ridge)

    def init(self, z0: Tensor) -> AndersonState:
        """Allocate the window for ``z0`` (B, N)."""
        kept = self.memory - 1
        dr, du = empty_window(z0, kept), empty_window(z0, kept)
        return AndersonState(dr, du, empty_gram(z0, kept), None, 0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: AndersonState
    ) -> tuple[Tensor, AndersonState]:
        """Propose the next iterate (B, N)."""
        u = fz if self.damping == 1 else z.lerp(fz, self.damping)  # (B, N)
        if self.memory == 1:
            return u, state
        r = fz - z  # (B, N)
        if state.last is None:
            return u, replace(state, last=(r, u), steps=1)
        newest = (state.steps - 1) % (self.memory - 1)
        filled = min(state.steps, self.memory - 1)
        last_r, last_u = state.last
        new_dr, new_du = unit_pair(r - last_r, u - last_u)  # (B, N) each
        dr = write(state.dr, (slice(None), newest), new_dr)
        du = write(state.du, (slice(None), newest), new_du)
        column, right = products(dr[:, :filled], new_dr, r)  # (B, K) each
        gram = write(state.gram, (slice(None), slice(filled), newest), column)
        gram = write(gram, (slice(None), newest, slice(filled)), column.conj())
        ridge = torch.finfo(r.dtype).eps if self.ridge is None else self.ridge
        gamma = solve_small(gram[:, :filled, :filled], right, ridge)  # (B, K)
        z_next = u - combination(du[:, :filled], gamma)
        return z_next, AndersonState(dr, du, gram, (r, u), state.steps + 1)
