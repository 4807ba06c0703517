"""Anderson acceleration of type I: all the last secant conditions of Broyden's method at once.

Letters: B samples, N unknowns, M differences kept, K <= M filled so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from deqgen_solvers.methods.options import check_damping, check_memory, check_ridge
from deqgen_solvers.methods.window import Pairs, combination, products
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver

# Zhang, O'Donoghue and Boyd's D and 1 + epsilon.
_SAFE, _POWER = 1e6, 1 + 1e-6


@dataclass(frozen=True)
class AndersonTypeIState:
    """The window, and how far a sample may go astray."""

    pairs: Pairs  # differences of z, of length 1, and of r = f(z) - z
    bound: Tensor  # (B, 1) a sample whose ||r|| * steps is above it takes a plain step


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

    references: ClassVar[tuple[str, ...]] = ("fang2009two", "zhang2020globally")
    memory: int = 5
    damping: float = 1.0
    ridge: float | None = None

    def __post_init__(self) -> None:
        check_memory("AndersonTypeI", self.memory)
        check_damping("AndersonTypeI", self.damping)
        check_ridge("AndersonTypeI", self.ridge)

    def init(self, z0: Tensor) -> AndersonTypeIState:
        """Allocate the window for ``z0`` (B, N)."""
        return AndersonTypeIState(Pairs.empty(z0, self.memory - 1), z0.new_zeros(len(z0), 1).real)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: AndersonTypeIState
    ) -> tuple[Tensor, AndersonTypeIState]:
        """Propose the next iterate (B, N)."""
        pairs, bound = state.pairs, state.bound
        z, fz = z.unsqueeze(1), fz.unsqueeze(1)  # (B, 1, N) each
        r = fz - z  # (B, 1, N)
        norm = torch.linalg.vector_norm(r, dim=2)  # (B, 1)
        plain = fz if self.damping == 1 else z.lerp(fz, self.damping)  # (B, 1, N)
        if self.memory == 1 or pairs.last is None:
            started = AndersonTypeIState(replace(pairs, last=(z, fz)), _SAFE * norm)
            return plain.squeeze(1), started
        last_z, last_fz = pairs.last
        first, second = pairs.room()
        dz = torch.sub(z, last_z, out=first)  # (B, 1, N)
        dr = torch.sub(r, torch.sub(last_fz, last_z, out=second), out=second)  # (B, 1, N)
        pairs, dz, dr, _ = pairs.push(dz, dr, (z, fz))
        all_dz, all_dr = pairs.vectors()  # (B, K, N) each
        # -<dz_i, dr_j> is positive for a contraction, as the ridge is.
        row, column = -products(all_dr, dz).conj(), -products(all_dz, dr)  # (B, 1, K) each
        rounding = torch.finfo(r.dtype).eps
        ridge = rounding if self.ridge is None else self.ridge
        pairs, gamma = pairs.solve(row, column, -products(all_dz, r), ridge)  # (B, 1, K)
        step = combination(all_dz, gamma) + self.damping * combination(all_dr, gamma)  # (B, 1, N)
        safe = norm * (pairs.taken + 1) ** _POWER <= bound  # (B, 1)
        # Longer than r / rounding: the system is singular, up to the ridge.
        safe &= torch.linalg.vector_norm(step, dim=2) * (100 * rounding) <= norm
        z_next = torch.where(safe.unsqueeze(2), plain - step, plain)
        return z_next.squeeze(1), AndersonTypeIState(pairs, bound)
