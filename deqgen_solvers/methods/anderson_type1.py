"""Anderson acceleration of type I: all the last secant conditions of Broyden's method at once.

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

# Zhang, O'Donoghue and Boyd's D and 1 + epsilon.
_SAFE, _POWER = 1e6, 1 + 1e-6


@dataclass(frozen=True)
class AndersonTypeIState:
    """Differences of consecutive iterates, in ring buffers, and what the next ones start from.

    A pair of differences is divided by the length of its dz, which does not change the answer.
    """

    dz: Tensor  # (B, M, N) differences of z, of length 1
    dr: Tensor  # (B, M, N) differences of r = f(z) - z
    small: Tensor  # (B, M, M) -<dz_i, dr_j>: positive for a contraction, as the ridge is
    last: tuple[Tensor, Tensor] | None  # z and r of the iterate before, (B, N) each
    bound: Tensor  # (B,) a sample whose ||r|| * steps is above it takes a plain step
    steps: int  # steps taken


@register_solver("anderson-type-1")
@dataclass(frozen=True, kw_only=True)
class AndersonTypeI:
    """Type-I Anderson acceleration in difference form.

    As `Anderson` (type II), but the remainder ``r_k - sum_j gamma_j (r_j+1 - r_j)`` is orthogonal
    to the differences of z instead of being least. It is the good Broyden method with all secant
    conditions of the window at once and, on an affine map with unlimited memory, FOM. Type II is
    the more robust and recommended; where the Jacobian is nearly symmetric this one may need fewer
    steps.

    It can break down where I - J is indefinite. A sample takes the plain step z + damping * r
    instead where ``||r_k|| > 1e6 ||r_0|| / (k + 1)``, or where its small system is singular to
    rounding, which shows in the length of the step.

    Source: H. Fang and Y. Saad, Numer. Linear Algebra Appl. 16 (2009), section 3; safeguard: J.
    Zhang, B. O'Donoghue and S. Boyd, SIAM J. Optim. 30 (2020), algorithm 3.1. Deviations from the
    latter: (1) the window slides, it is not cleared; (2) a ridge stands for their regularisation;
    (3) k counts all steps.

    Args:
        memory: iterates combined, the current one included, >= 1. So ``memory=1`` is Picard, and
            ``memory=m`` keeps m - 1 differences: 2 * (m - 1) copies of the state.
        damping: length of the residual's part, in (0, 1]; 1 is undamped.
        ridge: relative ridge of the small system, >= 0. None takes the rounding unit of the inner
            products: about 1e-7 for states of float32 and less, 2e-16 for float64.

    Raises:
        OptionError: an option out of range.
        OptionTypeError: an option of the wrong type.
    """

    memory: int = 5
    damping: float = 1.0
    ridge: float | None = None

    def __post_init__(self) -> None:
        check_memory("AndersonTypeI", self.memory)
        check_damping("AndersonTypeI", self.damping)
        check_ridge("AndersonTypeI", self.ridge)

    def init(self, z0: Tensor) -> AndersonTypeIState:
        """Allocate the window for ``z0`` (B, N)."""
        kept = self.memory - 1
        dz, dr, small = empty_window(z0, kept), empty_window(z0, kept), empty_gram(z0, kept)
        return AndersonTypeIState(dz, dr, small, None, z0.new_zeros(len(z0)).real, 0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: AndersonTypeIState
    ) -> tuple[Tensor, AndersonTypeIState]:
        """Propose the next iterate (B, N)."""
        r = fz - z  # (B, N)
        norm = torch.linalg.vector_norm(r, dim=1)  # (B,)
        plain = fz if self.damping == 1 else z.lerp(fz, self.damping)  # (B, N)
        if self.memory == 1 or state.last is None:
            return plain, replace(state, last=(z, r), bound=_SAFE * norm, steps=1)
        newest = (state.steps - 1) % (self.memory - 1)
        filled = min(state.steps, self.memory - 1)
        last_z, last_r = state.last
        new_dz, new_dr = unit_pair(z - last_z, r - last_r)  # (B, N) each
        dz = write(state.dz, (slice(None), newest), new_dz)
        dr = write(state.dr, (slice(None), newest), new_dr)
        column, right = products(dz[:, :filled], new_dr, r)  # (B, K) each
        (row,) = products(dr[:, :filled], new_dz)  # (B, K)
        small = write(state.small, (slice(None), slice(filled), newest), -column)
        small = write(small, (slice(None), newest, slice(filled)), -row.conj())
        rounding = torch.finfo(r.dtype).eps
        ridge = rounding if self.ridge is None else self.ridge
        gamma = solve_small(small[:, :filled, :filled], -right, ridge)  # (B, K)
        step = combination(dz[:, :filled], gamma) + self.damping * combination(
            dr[:, :filled], gamma
        )  # (B, N)
        safe = norm * (state.steps + 1) ** _POWER <= state.bound  # (B,)
        # Longer than r / rounding: the system is singular, up to the ridge.
        safe &= torch.linalg.vector_norm(step, dim=1) * (100 * rounding) <= norm
        z_next = torch.where(safe.unsqueeze(1), plain - step, plain)
        return z_next, AndersonTypeIState(dz, dr, small, (z, r), state.bound, state.steps + 1)
