"""Newton's method with inner GMRES: no Jacobian is formed, only its products with vectors.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from deqgen_solvers.methods.gmres import GMRES
from deqgen_solvers.methods.hessenberg import nonzero
from deqgen_solvers.methods.jacobian import difference, forward
from deqgen_solvers.methods.line_search import backtrack, settled
from deqgen_solvers.methods.options import check_choice, check_count, check_flag, check_forcing
from deqgen_solvers.methods.window import small_dtype
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver

# Eisenstat and Walker's choice 2 with their constants: gamma, the first term, and the largest.
_GAMMA, _FIRST, _LARGEST = 0.9, 0.5, 0.9


@dataclass(frozen=True)
class NewtonKrylovState:
    """What the forcing term remembers; nothing of the size of the state."""

    norm: Tensor  # (B,) ||f(z) - z|| of the last step
    forcing: Tensor  # (B,)
    steps: int  # steps taken


@register_solver("newton_krylov")
@dataclass(frozen=True, kw_only=True)
class NewtonKrylov:
    """Inexact Newton on g(z) = f(z) - z; each step solves (I - J) s = g(z) for s by GMRES.

    A sample stops its inner iteration once ``||g - (I - J) s|| <= forcing * ||g||``. Its forcing
    term is its own, 0.9 (||g|| / ||g of the last step||)^2 between safeguards (choice 2), so that
    a far or easy sample spends little on its linear system and convergence is quadratic in the end.

    Every product with J is one call of f on all samples. On a CPU the inner loop ends when its
    last sample does; elsewhere, and when compiled, it always runs ``inner_steps`` times with
    finished samples masked, because asking whether it may end would wait for the device.

    J is the derivative over the reals. So a complex f may conjugate; where it is holomorphic, up to
    2 N products solve a system for which complex arithmetic would need N.

    Source: R. S. Dembo, S. C. Eisenstat and T. Steihaug, SIAM J. Numer. Anal. 19 (1982); S. C.
    Eisenstat and H. F. Walker, SIAM J. Sci. Comput. 17 (1996), equation 2.6 and section 2.1; GMRES:
    Y. Saad and M. H. Schultz, SIAM J. Sci. Stat. Comput. 7 (1986). Deviations: (1) where GMRES
    finds nothing better than s = 0, the step is Picard's; (2) the line search halves and tries at
    most 6 lengths.

    Args:
        inner_steps: most products with J a step, >= 1. It bounds the memory too, at about
            inner_steps + 6 copies of the state. Systems that need more are solved in part, and a
            strongly non-normal Jacobian with many more unknowns may then never be solved.
        forcing: the forcing term, in (0, 1), for all samples and steps; None adapts it.
        line_search: shorten the step of a sample until its residual falls. It takes at least one
            more call of f a step, and finds solutions from farther away.
        jvp: "forward" takes products by forward-mode differentiation of f, exact to rounding;
            "difference" takes (f(z + h v) - f(z)) / h, for an f without forward-mode formulas. It
            does not suit half-precision states, to which z + h v is mostly rounded back to z.

    Raises:
        OptionError: an option out of range.
        OptionTypeError: an option of the wrong type.
        ForwardModeError: in ``step``, when f has no forward-mode derivative.
    """

    references: ClassVar[tuple[str, ...]] = (
        "dembo1982inexact",
        "eisenstat1996choosing",
        "saad1986gmres",
    )
    inner_steps: int = 10
    forcing: float | None = None
    line_search: bool = False
    jvp: str = "forward"

    def __post_init__(self) -> None:
        check_count("NewtonKrylov", "inner_steps", self.inner_steps)
        check_forcing("NewtonKrylov", self.forcing)
        check_flag("NewtonKrylov", "line_search", self.line_search)
        check_choice("NewtonKrylov", "jvp", self.jvp, ("forward", "difference"))

    def init(self, z0: Tensor) -> NewtonKrylovState:
        """No memory but two numbers a sample."""
        norm = torch.zeros(z0.shape[0], dtype=small_dtype(z0.real), device=z0.device)
        return NewtonKrylovState(norm, norm, 0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: NewtonKrylovState
    ) -> tuple[Tensor, NewtonKrylovState]:
        """Propose the next iterate (B, N)."""
        g = fz - z  # (B, N)
        norm = vector_norm(g, dim=1).to(state.norm.dtype)  # (B,)
        forcing = self._forcing(norm, state, torch.finfo(z.dtype).eps)

        def times_j(v: Tensor) -> Tensor:
            return forward(f, z, v) if self.jvp == "forward" else difference(f, z, fz, v)

        step = _solve_linear(times_j, g, forcing * norm, self.inner_steps)
        if not self.line_search:
            return z + step, NewtonKrylovState(norm, forcing, state.steps + 1)
        # A residual that is the same to the last digit is that of a frozen sample.
        still = norm == state.norm
        z_next = backtrack(f, z, step, norm, still)
        return z_next, NewtonKrylovState(norm, forcing, state.steps + 1)

    def _forcing(self, norm: Tensor, state: NewtonKrylovState, rounding: float) -> Tensor:
        """The relative residual to which each linear system is solved, (B,)."""
        if self.forcing is not None:
            return torch.full_like(norm, self.forcing)
        if state.steps == 0:
            return torch.full_like(norm, _FIRST)
        choice = _GAMMA * (norm / nonzero(state.norm)).square()
        # One lucky step is no reason to solve the next system to the end.
        safeguard = _GAMMA * state.forcing.square()
        choice = torch.where(safeguard > 0.1, torch.maximum(choice, safeguard), choice)
        return choice.clamp(10 * rounding, _LARGEST)


def _solve_linear(
    times_j: Callable[[Tensor], Tensor], g: Tensor, target: Tensor, most: int
) -> Tensor:
    """Solve s = J s + g, an affine fixed point, for each sample to the residual ``target`` (B,).

    Complex vectors go to GMRES as pairs of reals, over which J is linear.
    """
    right = _as_real(g)
    method = GMRES(restart=most)
    state = method.init(right)
    # The first point of GMRES is 0, whose image is g.
    point, state = method.step(_no_function, torch.zeros_like(right), right, state)
    best, least = right, state.least
    done = least <= target
    for _ in range(most):
        image = _as_real(times_j(_as_like(point, g))) + right
        point, state = method.step(_no_function, point, image, state)
        better = ~done & (state.least < least)
        best = torch.where(better.unsqueeze(1), state.minimiser(), best)
        least = torch.where(better, state.least, least)
        done = done | (least <= target)
        if settled(done):
            break
    return _as_like(best, g)


def _as_real(x: Tensor) -> Tensor:
    """Complex (B, N) -> real (B, 2 N); real as it is."""
    return torch.view_as_real(x).flatten(1) if x.is_complex() else x


def _as_like(x: Tensor, like: Tensor) -> Tensor:
    """The inverse: x in the form of ``like`` (B, N)."""
    return torch.view_as_complex(x.reshape(len(x), -1, 2)) if like.is_complex() else x


def _no_function(z: Tensor) -> Tensor:
    """GMRES never calls f: its images are products."""
    raise AssertionError(z.shape)
