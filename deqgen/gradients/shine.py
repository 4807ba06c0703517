"""The forward solver's own estimate of the inverse Jacobian, used once more for the gradient.

Letters: B samples, N unknowns of one sample, K pairs of the forward solve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqgen.gradients.adjoint import attach
from deqgen.gradients.product import Cotangent, Product
from deqgen.gradients.protocol import Cell, Equilibrium, Forward
from deqgen.gradients.registry import register_gradient
from deqgen.gradients.states import answer, leaves, rebuild
from deqgen.gradients.warning import warn_unless_converged
from deqgen_solvers import Broyden, make_solver
from deqgen_solvers.methods.broyden import BroydenState
from deqgen_solvers.methods.options import check_count
from deqgen_solvers.methods.window import Pairs, combination, products, solve_small
from deqgen_solvers.state import Layout

_EFFECT = "the inverse that it learnt, and with it the gradient, is that of another point"


@register_gradient("shine")
@dataclass(frozen=True)
class SHINE:
    """Sharing the inverse estimate (Z. Ramzi et al. 2022, arXiv 2106.00553).

    Broyden's method learns an approximation H of (I - J)^-1 while it finds the fixed point. The
    adjoint system v = u + J^T v has the solution (I - J^T)^-1 u, so v = H^T u costs no further
    product with J. H is good along the directions that the forward solve went, which are not those
    of u: the gradient is far from exact, and on a GET block it was no better than `JFB`'s
    (docs/how_to_choose_a_gradient.md).

    With ``refine=k`` it is corrected k times, v <- v + H^T (u + J^T v - v), at one vector-Jacobian
    product each: the paper's refined variant, as chord iterations.

    The layer's solver must be ``Broyden(memory)`` with a memory of at least ``max_steps``, so that
    a sample that finishes early keeps its pairs while others run on.

    Reverse mode, once: double backward and forward mode raise :class:`GradientError`.

    Args:
        refine: corrections, 0 or more.

    Raises:
        ValueError: ``refine`` below 0; at the first call, a solver that learns no inverse.
    """

    references: ClassVar[tuple[str, ...]] = ("ramzi2022shine",)
    refine: int = 0

    def __post_init__(self) -> None:
        check_count("SHINE", "refine", self.refine, least=0)

    @property
    def keeps_answer(self) -> bool:
        """True: the answer is that of the solver."""
        return True

    def differentiate(
        self, f: Cell, z0: Any, args: tuple[Any, ...], forward: Forward
    ) -> Equilibrium:
        """See :meth:`GradientEstimator.differentiate`."""
        watched = _Watched(_broyden(forward))
        solution = replace(forward, solver=watched)(f, z0, args)
        if not torch.is_grad_enabled():
            z = answer(solution)
            return Equilibrium(z, (z,), solution)
        warn_unless_converged("forward", solution, forward.tol, _EFFECT)
        layout = Layout(solution.z)
        if solution.fz is not None:
            watched.look(layout.flatten(solution.z), layout.flatten(solution.fz))

        def flat(cotangent: Cotangent) -> Tensor:
            return layout.flatten(rebuild(solution.z, list(cotangent)), "the cotangent")

        def split(v: Tensor) -> Cotangent:
            return tuple(leaves(layout.unflatten(v), like=solution.z))

        def respond(product: Product, u: Cotangent) -> Cotangent:
            right = flat(u)  # (B, N)
            v = _inverse(watched.pairs, right)  # (B, N)
            for _ in range(self.refine):
                v = v + _inverse(watched.pairs, right + flat(product(split(v))) - v)
            return split(v)

        z = attach(f, solution.z, args, respond)
        return Equilibrium(z, (z,), solution)


class _Watched:
    """A solver whose last State stays at hand."""

    def __init__(self, solver: Broyden) -> None:
        self.solver = solver
        self.state: BroydenState | None = None

    @property
    def pairs(self) -> Pairs | None:
        """What the solver has learnt."""
        return None if self.state is None else self.state.pairs

    def init(self, z0: Tensor) -> BroydenState:
        return self.solver.init(z0)

    def step(
        self, f: Any, z: Tensor, fz: Tensor, state: BroydenState
    ) -> tuple[Tensor, BroydenState]:
        z, self.state = self.solver.step(f, z, fz, state)
        return z, self.state

    def look(self, z: Tensor, fz: Tensor) -> None:
        """Learn from the answer too; samples that ended before others have done so already."""
        if self.state is not None:
            plain = replace(self.solver, line_search=False)  # which needs no f
            with torch.no_grad():
                _, self.state = plain.step(lambda z: z, z, fz, self.state)


def _inverse(pairs: Pairs | None, u: Tensor) -> Tensor:
    """H^H u for u (B, N), where H = I + D (N - P)^-1 S^H; see `deqgen_solvers.Broyden`."""
    if pairs is None or pairs.taken == 0:
        return u
    steps, changes = pairs.vectors()  # (B, K, N) each
    held = pairs.small[:, : steps.shape[1], : steps.shape[1]]  # (B, K, K), P - N
    weights = solve_small(held.mH, products(changes, u.unsqueeze(1)))  # (B, 1, K)
    return u - combination(steps, weights).squeeze(1)


def _broyden(forward: Forward) -> Broyden:
    solver = make_solver(forward.solver)
    if not isinstance(solver, Broyden):
        raise ValueError(
            f"SHINE shares the inverse Jacobian that Broyden's method learns, and {solver!r} "
            f"learns none. Use solver=Broyden(memory={forward.max_steps}), or gradient=JFB()."
        )
    if solver.memory < forward.max_steps:
        raise ValueError(
            f"SHINE: {solver!r} forgets pairs within max_steps={forward.max_steps}, and a sample "
            f"that finishes early would lose all of its own. Use Broyden(memory="
            f"{forward.max_steps}) or fewer steps."
        )
    if forward.compact:
        raise ValueError("SHINE: compact=True lets samples leave with what was learnt on them.")
    return solver
