"""Anderson acceleration: the combination of recent images whose residual is least.

Letters: B samples, N unknowns, M differences kept, K <= M filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqgen_solvers.methods.options import check_damping, check_memory, check_ridge
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
class AndersonState:
    """Differences of consecutive iterates, in ring buffers.

    The slot after the newest difference holds the last r and u themselves; the next step turns them
    into a difference in place, so that no copy of the last iterate is kept beside the window.
    """

    dr: Tensor  # (B, M, N) differences of r = f(z) - z
    du: Tensor  # (B, M, N) differences of u = z + damping * r
    gram: Tensor  # (B, M, M) <dr_i, dr_j>
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
    (2011), equation 2.3 and theorem 2.2. The ridge is ours: the Gram matrix is scaled to a unit
    diagonal first and ridge * trace / K added to it, so that it means the same at every scale of
    the state and for old, long differences as for new, short ones.

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
        return AndersonState(dr, du, empty_gram(z0, kept), 0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: AndersonState
    ) -> tuple[Tensor, AndersonState]:
        """Propose the next iterate (B, N)."""
        u = fz if self.damping == 1 else z.lerp(fz, self.damping)  # (B, N)
        if self.memory == 1:
            return u, state
        r = fz - z  # (B, N)
        kept, steps, dr, du, gram = self.memory - 1, state.steps, state.dr, state.du, state.gram
        z_next = u
        if steps > 0:
            newest = (steps - 1) % kept
            filled = min(steps, kept)
            difference = r - dr[:, newest]  # (B, N)
            dr = write(dr, (slice(None), newest), difference)
            du = write(du, (slice(None), newest), u - du[:, newest])
            dots = products(dr[:, :filled], difference, r)  # (B, K, 2)
            gram = write(gram, (slice(None), slice(filled), newest), dots[:, :, 0])
            gram = write(gram, (slice(None), newest, slice(filled)), dots[:, :, 0].conj())
            gamma = self._gamma(gram[:, :filled, :filled], dots[:, :, 1], r.dtype)  # (B, K)
            z_next = u - combination(du[:, :filled], gamma)
        dr = write(dr, (slice(None), steps % kept), r)
        du = write(du, (slice(None), steps % kept), u)
        return z_next, AndersonState(dr, du, gram, steps + 1)

    def _gamma(self, gram: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        """Minimise ||r - dr @ gamma|| for each sample: (B, K, K) and (B, K) -> (B, K)."""
        ridge = torch.finfo(dtype).eps if self.ridge is None else self.ridge
        return solve_scaled(gram, right, gram.diagonal(dim1=1, dim2=2).real, ridge)
