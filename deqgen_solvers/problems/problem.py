"""What a test problem is: a map, a start, the exact answer where there is one, and who fails.

Letters: B samples, N unknowns of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from deqgen_solvers.driver import solve
from deqgen_solvers.protocol import Solver
from deqgen_solvers.solution import Solution
from deqgen_solvers.stopping import Tolerance


def precision(dtype: torch.dtype, *, absolute: bool = False) -> dict[str, Any]:
    """``tol`` and ``error`` of a problem: 1e-9 and 1e-6 in double, 1e-5 and 1e-2 in single.

    Args:
        dtype: of the state.
        absolute: for a fixed point at 0, near which nothing is small in relative terms.
    """
    wanted = 1e-9 if torch.finfo(dtype).eps < 1e-12 else 1e-5
    tol = Tolerance(atol=wanted, rtol=0.0) if absolute else Tolerance(atol=0.0, rtol=wanted)
    return {"tol": tol, "error": 1e3 * wanted}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """B independent problems ``z = f(z, *args)``, ready for `solve`.

    Attributes:
        f: row-wise map of a state (B, ...).
        z0: where to start, (B, ...).
        args: tensors with one row a sample, as ``compact=True`` asks for.
        exact: the fixed point (B, ...) that a method should find, or None where no closed form or
            dense solve gives it and the residual must do.
        tol: when a sample counts as solved.
        error: how far from ``exact`` a point within ``tol`` may be: a bound on
            ``|z - exact| / (1 + |exact|)``. Near a Jacobian eigenvalue of 1 a small residual says
            little about the error.
        max_steps: enough for every method that is not in ``failures``.
        failures: name of a method, with its default options -> why it must leave at least one
            sample unsolved. Whoever is not named solves them all.
    """

    f: Callable[..., Tensor]
    z0: Tensor
    args: tuple[Any, ...] = ()
    exact: Tensor | None = None
    tol: Tolerance
    error: float = 1e-6
    max_steps: int = 400
    failures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def run(self, solver: str | Solver[Any], **settings: Any) -> Solution[Tensor]:
        """Solve with the problem's own tolerance and step limit, unless ``settings`` say other."""
        settings = {"tol": self.tol, "max_steps": self.max_steps, **settings}
        return solve(self.f, self.z0, self.args, solver, **settings)

    def residual(self, z: Tensor) -> Tensor:
        """``||f(z) - z||`` of each sample, (B,)."""
        return _norm(self.f(z, *self.args) - z)

    def solved_by(self, z: Tensor) -> Tensor:
        """Say for each sample whether z solves it, (B,) bool; believes no solver's word.

        z (B, ...) must meet the tolerance by a residual computed here, and lie within ``error`` of
        the exact answer where there is one.
        """
        image = self.f(z, *self.args)
        # A hair wider than the driver's rule: f may round otherwise in a batch of another size.
        allowed = self.tol.threshold(_norm(image), math.prod(z.shape[1:])) * (1 + 1e-3)
        solved = _norm(image - z) <= allowed
        if self.exact is not None:
            solved &= _norm(z - self.exact) <= self.error * (1 + _norm(self.exact))
        return solved


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def draws(seed: int, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
    """A source of normal numbers: ``source(*shape)``. Drawn in double precision, then rounded."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=wide).to(dtype)
