"""Differential and integral equations on a grid.

Letters: B samples, N grid points, S points along one side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from deqgen_solvers.problems.affine import second_difference
from deqgen_solvers.problems.nonlinear import spread
from deqgen_solvers.problems.problem import Problem, precision


def boundary_value(
    *,
    size: int = 10,
    batch: int = 3,
    by_integral: bool = False,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """``x'' = c (x + t + 1)^3 / 2`` with x = 0 at t = 0 and 1; samples differ in c.

    Two maps with one and the same discrete answer. By differences (MGH 28) it is Jacobi's
    iteration, whose rate nears 1 as the grid is refined; by the integral equation (MGH 29), where
    Green's function has inverted the second difference, it contracts at the same rate on any grid.

    Source: J. J. More, B. S. Garbow, K. E. Hillstrom, ACM Trans. Math. Software 7 (1981), c = 1.
    """
    step = 1 / (size + 1)
    t = torch.arange(1, size + 1, dtype=dtype) * step
    c = spread(0.5, 1.5, batch, dtype)
    green: Tensor = torch.linalg.inv(second_difference(size)).to(dtype)  # (N, N), symmetric

    def force(z: Tensor, c: Tensor) -> Tensor:
        return c * step**2 / 2 * (z + t + 1).pow(3)

    def differences(z: Tensor, c: Tensor) -> Tensor:
        wide = pad(z, (1, 1))
        return (wide[:, :-2] + wide[:, 2:] - force(z, c)) / 2

    def integral(z: Tensor, c: Tensor) -> Tensor:
        return -force(z, c) @ green

    f = integral if by_integral else differences
    z0 = (t * (t - 1)).repeat(batch, 1)
    return Problem(f=f, z0=z0, args=(c,), **{**precision(dtype), **more})


def bratu(
    *,
    size: int = 20,
    batch: int = 3,
    strength: float = 3.3,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """``u'' + s e^u = 0`` with u = 0 at both ends, as ``u = Green's function applied to s e^u``.

    Samples differ in s, up to ``strength``. From 0 a method should find the lower of the two
    solutions; they meet, and the iteration stalls, at s = 3.514 as the grid is refined.
    """
    s = spread(strength / 3, strength, batch, dtype)
    green: Tensor = (torch.linalg.inv(second_difference(size)) / (size + 1) ** 2).to(dtype)

    def f(z: Tensor, s: Tensor) -> Tensor:
        return s * (z.exp() @ green)

    z0 = torch.zeros(batch, size, dtype=dtype)
    return Problem(f=f, z0=z0, args=(s,), **{**precision(dtype), **more})


def bratu_square(
    *,
    side: int = 6,
    batch: int = 3,
    strength: float = 6.0,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """The same on a square, state (B, S, S), by Jacobi's iteration; solvable up to s = 6.8."""
    s = spread(strength / 3, strength, batch, dtype).unsqueeze(2)  # (B, 1, 1)

    def f(z: Tensor, s: Tensor) -> Tensor:
        wide = pad(z, (1, 1, 1, 1))  # (B, S + 2, S + 2)
        across = wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
        along = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1]
        return (across + along + s / (side + 1) ** 2 * z.exp()) / 4

    z0 = torch.zeros(batch, side, side, dtype=dtype)
    return Problem(f=f, z0=z0, args=(s,), **{**precision(dtype), **more})


def chandrasekhar(
    *,
    size: int = 16,
    batch: int = 3,
    albedo: float = 0.99,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """Chandrasekhar's H-equation of radiative transfer, midpoint rule; samples differ in albedo.

    ``H(m) = 1 / (1 - c/2 * integral of m H(n) / (m + n) dn)``. The Jacobian is singular at c = 1.
    Source: C. T. Kelley, Iterative Methods for Linear and Nonlinear Equations, SIAM (1995), 5.6.
    """
    c = spread(0.5, albedo, batch, dtype)
    m = (torch.arange(size, dtype=dtype) + 0.5) / size
    kernel = m.unsqueeze(1) / (m.unsqueeze(1) + m) / (2 * size)  # (N, N)

    def f(z: Tensor, c: Tensor) -> Tensor:
        return 1 / (1 - c * (z @ kernel.T))

    z0 = torch.ones(batch, size, dtype=dtype)
    return Problem(f=f, z0=z0, args=(c,), **{**precision(dtype), **more})
