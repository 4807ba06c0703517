"""GMRES for affine maps: the point of least residual in a growing Krylov space.

Letters: B samples, N unknowns, M the restart length, K <= M + 1 basis vectors so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from deqgen_solvers.methods.hessenberg import Hessenberg, nonzero
from deqgen_solvers.methods.options import check_count
from deqgen_solvers.methods.window import combination, empty_window, products, small_dtype, write
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import register_solver

# The newest basis vector's least share of the step away from the minimiser. Where GMRES stagnates
# its residual has none, and f would be asked what it has already said.
_SHARE = 0.1

# On an affine map the residual at a proposal is at most about 1 + ||I - A|| times the model's. Ten
# times that, and rounding or the curvature of f speaks: the row begins anew where it is.
_TRUST = 10.0


@dataclass(frozen=True)
class GMRESState:
    """A Krylov basis and the small problem on it.

    The rows share the slot that is filled next. A row that begins anew in the middle of a cycle
    leaves its older slots unused: they get the coefficient 0.
    """

    base: Tensor  # (B, N) where the row began
    basis: Tensor  # (B, M + 1, N) orthonormal vectors v
    first: Tensor  # (B,) the first slot in use
    problem: Hessenberg  # (I - A) v = basis @ H
    weights: Tensor  # (B, K - 1) the minimiser is base + weights @ basis
    least: Tensor  # (B,) norm of its residual, by the model
    known: Tensor  # (B, K) residual at the proposal, but for the newest vector's part
    stride: Tensor  # (B,) the newest vector's coefficient in the proposal
    filled: int  # K

    def minimiser(self) -> Tensor:
        """Return the point of least residual so far, (B, N)."""
        basis = self.basis[:, : self.filled - 1]
        return self.base + combination(basis, self.weights.unsqueeze(1)).squeeze(1)


@register_solver("gmres")
@dataclass(frozen=True, kw_only=True)
class GMRES:
    """GMRES on (I - A) z = b, for affine maps f(z) = A z + b, one evaluation a step.

    A step proposes z + r, where z is the point of least residual in the Krylov space so far and r
    its residual: what Anderson with unlimited memory proposes (Walker and Ni 2011, theorem 2.2). In
    the image of the proposal all is known but A times the newest basis vector, which is thereby
    found, in coefficients: no product takes an evaluation of its own, and the memory is M + 2
    copies of the state, about half of Anderson's. Where GMRES stagnates, Anderson loses the step;
    here the proposal then moves along the newest basis vector too.

    A product is known to rounding over the length of the step that it comes from, so the later are
    the less exact; Krylov methods lose nothing by that (V. Simoncini and D. B. Szyld, SIAM J. Sci.
    Comput. 25, 2003).

    On an affine map with N <= ``restart`` unknowns it ends in at most N + 1 steps: N products and
    the answer. On any other map the model is wrong by the curvature of f. A row whose residual the
    model cannot explain begins anew where it is, which near a solution makes this a Newton-Krylov
    method of sorts; far from one nothing is promised. It stays honest: residual and status are the
    driver's, of f itself.

    Source: Y. Saad and M. H. Schultz, SIAM J. Sci. Stat. Comput. 7 (1986), section 3. Deviations:
    (1) products from images, as above; (2) orthogonalised twice against all vectors at once.

    Args:
        restart: basis vectors before all rows begin anew from where they are, >= 1.

    Raises:
        OptionError: restart below 1.
        OptionTypeError: restart is no whole number.
    """

    references: ClassVar[tuple[str, ...]] = ("saad1986gmres", "walker2011anderson")
    restart: int = 20

    def __post_init__(self) -> None:
        check_count("GMRES", "restart", self.restart)

    def init(self, z0: Tensor) -> GMRESState:
        """Allocate the basis for ``z0`` (B, N)."""
        first = torch.zeros(z0.shape[0], dtype=torch.int64, device=z0.device)
        row = torch.zeros(z0.shape[0], 1, dtype=small_dtype(z0), device=z0.device)
        size = row[:, 0].real
        problem = Hessenberg.begin(size, 0, row.dtype)
        basis = empty_window(z0, self.restart + 1)
        return GMRESState(z0, basis, first, problem, row[:, :0], size, row, row[:, 0], 0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: GMRESState
    ) -> tuple[Tensor, GMRESState]:
        """Propose the next iterate (B, N)."""
        slot = state.filled % (self.restart + 1)
        r = fz - z  # (B, N)
        norm = vector_norm(r, dim=1).to(state.least.dtype)  # (B,)
        anew = _begins(state, norm) if slot else torch.ones_like(state.first, dtype=torch.bool)
        first = torch.where(anew, slot, state.first)
        base = torch.where(anew.unsqueeze(1), z, state.base)
        along, across = _split(state.basis[:, :slot], first, r)  # (B, slot), (B, N)
        height = vector_norm(across, dim=1)  # (B,)
        basis = write(state.basis, (slice(None), slot), across / nonzero(height).unsqueeze(1))
        problem = Hessenberg.begin(norm, slot, along.dtype)
        if slot:
            product = torch.cat((state.known - along, -height.to(along.dtype).unsqueeze(1)), dim=1)
            column = product / nonzero(state.stride).unsqueeze(1)  # (B, K)
            problem = state.problem.extend(column).replace(anew, problem)
        # A product's rounding errors are those of r over a stride that may be a tenth of it.
        weights = problem.solve(10 * torch.finfo(z.dtype).eps / _SHARE)  # (B, K - 1)
        ahead = problem.residual(weights)  # (B, K) from the minimiser to the proposal
        least = vector_norm(ahead, dim=1)
        # Where GMRES stagnates its residual has no part along the newest vector.
        share = _SHARE * least
        stride = torch.where(ahead[:, -1].abs() < share, share, ahead[:, -1])
        there = weights + ahead[:, :-1]
        known = problem.residual(there)
        weight = torch.cat((there, stride.unsqueeze(1)), dim=1).unsqueeze(1)  # (B, 1, K)
        proposal = base + combination(basis[:, : slot + 1], weight).squeeze(1)
        return proposal, GMRESState(
            base, basis, first, problem, weights, least, known, stride, slot + 1
        )


def _begins(state: GMRESState, norm: Tensor) -> Tensor:
    """Whether each row begins anew (B,): its residual is far from what the model can explain.

    A row with one vector only has no model yet. NaN begins anew.
    """
    explained = norm <= _TRUST * (1 + state.problem.scale) * state.least
    return ~(explained | (state.first == state.filled - 1))


def _split(basis: Tensor, first: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of r (B, N) in the basis (B, K, N), and what is orthogonal to it (B, N)."""
    r = r.unsqueeze(1)  # (B, 1, N)
    unused = torch.arange(basis.shape[1], device=r.device) < first[:, None, None]  # (B, 1, K)
    along = products(basis, r).to(small_dtype(r)).masked_fill(unused, 0)
    across = r - combination(basis, along)
    # Twice is enough: once leaves rounding errors of r, long beside a short remainder.
    again = products(basis, across).to(small_dtype(r)).masked_fill(unused, 0)
    return (along + again).squeeze(1), (across - combination(basis, again)).squeeze(1)
