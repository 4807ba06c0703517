"""Anderson acceleration: combine past iterates so that the combined residual is least.

Letters: B samples, N unknowns, M differences kept, K <= M filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from deqgen_solvers.methods.options import check_damping, check_memory, check_ridge
from deqgen_solvers.methods.window import Pairs, add_combination, products
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver


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

    references: ClassVar[tuple[str, ...]] = ("anderson1965iterative", "walker2011anderson")
    memory: int = 5
    damping: float = 1.0
    ridge: float | None = None

    def __post_init__(self) -> None:
        check_memory("Anderson", self.memory)
        check_damping("Anderson", self.damping)
        check_ridge("Anderson", self.ridge)

    def init(self, z0: Tensor) -> Pairs:
        """Allocate the window for ``z0`` (B, N): pairs of dr, of length 1, and du."""
        return Pairs.empty(z0, self.memory - 1)

    def step(self, f: Function, z: Tensor, fz: Tensor, state: Pairs) -> tuple[Tensor, Pairs]:
        """Propose the next iterate (B, N)."""
        if self.memory == 1:
            return self._damped(z, fz), state
        z, fz = z.unsqueeze(1), fz.unsqueeze(1)  # (B, 1, N) each
        u = self._damped(z, fz)  # (B, 1, N)
        if state.last is None:
            return u.squeeze(1), replace(state, last=(z, fz))
        last_z, last_fz = state.last
        r = fz - z  # (B, 1, N)
        first, second = state.room()
        dr = torch.sub(r, torch.sub(last_fz, last_z, out=first), out=first)  # (B, 1, N)
        du = torch.sub(u, self._damped(last_z, last_fz), out=second)  # (B, 1, N)
        pairs, dr, du, _ = state.push(dr, du, (z, fz))
        all_dr, all_du = pairs.vectors()  # (B, K, N) each
        column, right = products(all_dr, dr), products(all_dr, r)  # (B, 1, K) each
        del r  # z_next may have its memory
        ridge = torch.finfo(z.dtype).eps if self.ridge is None else self.ridge
        pairs, gamma = pairs.solve(column.conj(), column, right, ridge)  # (B, 1, K)
        return add_combination(u, all_du, gamma, -1).squeeze(1), pairs

    def _damped(self, z: Tensor, fz: Tensor) -> Tensor:
        return fz if self.damping == 1 else z.lerp(fz, self.damping)
