"""Small nonlinear systems g(x) = 0 of the literature, turned into z = z - scale * g(z).

MGH: J. J. More, B. S. Garbow and K. E. Hillstrom, "Testing unconstrained optimization software",
ACM Trans. Math. Software 7 (1981). Where the original is one system, the samples differ in a
parameter or in the start.

Letters: B samples, N unknowns of one sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from deqgen_solvers.problems.problem import Problem, precision


def spread(low: float, high: float, batch: int, dtype: torch.dtype) -> Tensor:
    """One parameter a sample, (B, 1); the middle of the range for a single one."""
    if batch == 1:
        low = (low + high) / 2
    return torch.linspace(low, high, batch, dtype=dtype).unsqueeze(1)


def cosine(*, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any) -> Problem:
    """``z = cos z``, one unknown, from starts far and near."""
    z0 = torch.tensor([0.0, 3.0, -50.0], dtype=dtype).repeat(batch // 3 + 1)[:batch].unsqueeze(1)
    exact = torch.full_like(z0, 0.7390851332151607)
    return Problem(f=torch.cos, z0=z0, exact=exact, **{**precision(dtype), **more})


def constant(
    *, size: int = 6, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any
) -> Problem:
    """``g(x) = x``, so that f is 0 everywhere; the first sample starts at the answer."""
    z0 = torch.arange(1, size + 1, dtype=dtype) * torch.arange(batch, dtype=dtype).unsqueeze(1)
    settings = {**precision(dtype, absolute=True), **more}
    return Problem(f=lambda z: z - z, z0=z0, exact=torch.zeros_like(z0), **settings)


def cubic(
    *, size: int = 5, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any
) -> Problem:
    """``g(x) = d x + c |x|^2 x`` with d from 3 to 1/2; the answer is 0. Samples differ in c."""
    d = torch.linspace(3, 0.5, size, dtype=dtype)
    c = spread(0.01, 0.1, batch, dtype)

    def f(z: Tensor, c: Tensor) -> Tensor:
        return z - (d + c * z.square().sum(dim=1, keepdim=True)) * z

    z0 = torch.ones(batch, size, dtype=dtype)
    settings = {**precision(dtype, absolute=True), **more}
    return Problem(f=f, z0=z0, args=(c,), exact=torch.zeros_like(z0), **settings)


def pipes(
    *, size: int = 4, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any
) -> Problem:
    """A given flow through parallel pipes, all of one pressure drop ``k_i q_i |q_i|``.

    The sign leaves no second solution with flows that run backwards. The exact flows are in the
    proportion of k^(-1/2). Samples differ in the resistances k.
    """
    uneven = torch.linspace(-1, 1, size, dtype=dtype) * spread(0.0, 0.3, batch, dtype)
    k = 0.5 * (1 + uneven)  # (B, N)
    total = torch.full((batch, 1), float(size), dtype=dtype)
    exact = total * k.rsqrt() / k.rsqrt().sum(dim=1, keepdim=True)

    def f(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
        drop = k * q * q.abs()
        balance = q.sum(dim=1, keepdim=True) - total
        return q - torch.cat((balance, drop[:, 1:] - drop[:, :1]), dim=1)

    z0 = torch.arange(size, dtype=dtype).remainder(2).neg().add(1).mul(2).repeat(batch, 1)
    return Problem(f=f, z0=z0, args=(k, total), exact=exact, **{**precision(dtype), **more})


def two_curves(*, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any) -> Problem:
    """``(x+3)(y^5-7)+18 = 0``, ``sin(y e^x - 1) = 0``, preconditioned by its Jacobian at a start.

    The answer is (0, 1). Samples start at shares of the way from (-1/2, 7/5) to it.
    """
    exact = torch.tensor([[0.0, 1.0]], dtype=dtype).repeat(batch, 1)
    start = torch.tensor([[-0.5, 1.4]], dtype=dtype)

    def g(z: Tensor) -> Tensor:
        x, y = z.unbind(1)
        return torch.stack(((x + 3) * (y**5 - 7) + 18, torch.sin(y * x.exp() - 1)), dim=1)

    x, y = start[0].tolist()
    slope = torch.cos(start[0, 1] * start[0, 0].exp() - 1) * start[0, 0].exp()
    first = torch.tensor([y**5 - 7, (x + 3) * 5 * y**4], dtype=dtype)
    inverse = torch.linalg.inv(torch.stack((first, torch.stack((slope * y, slope)))))
    z0 = start + spread(0.0, 0.5, batch, dtype) * (exact - start)
    settings = {**precision(dtype), **more}
    return Problem(f=lambda z: z - g(z) @ inverse.T, z0=z0, exact=exact, **settings)


def powell(*, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any) -> Problem:
    """Powell's badly scaled function, MGH 3: ``10^4 x y = 1``, ``e^-x + e^-y = 1.0001``.

    The answer has entries of 1e-5 and 9, and the two equations are of sizes 1e4 apart. Samples
    start near (-1, -2), from where the first step of 1e4 leaves every region that tells anything:
    methods that do not scale the equations or limit their steps fail here.
    """

    def f(z: Tensor) -> Tensor:
        x, y = z.unbind(1)
        return z - torch.stack((1e4 * x * y - 1, (-x).exp() + (-y).exp() - 1.0001), dim=1)

    exact = torch.tensor([[1.0981593296998175e-05, 9.106146739866524]], dtype=dtype)
    z0 = spread(0.9, 1.1, batch, dtype) * torch.tensor([[-1.0, -2.0]], dtype=dtype)
    # The inverse of the Jacobian at the answer is of size 1e4.
    settings = {**precision(dtype), "error": 1e4 * precision(dtype)["tol"].rtol, **more}
    return Problem(f=f, z0=z0, exact=exact.repeat(batch, 1), **settings)


def trigonometric(
    *, size: int = 10, batch: int = 3, dtype: torch.dtype = torch.float64, **more: Any
) -> Problem:
    """MGH 26: ``g_i = sin x_i - N + sum_j cos x_j - i (1 - cos x_i)``; the answer here is 0.

    Samples start at a tenth to a half of the published start 1/N, from where there are others.
    """
    index = torch.arange(1, size + 1, dtype=dtype)

    def f(z: Tensor) -> Tensor:
        less = 1 - z.cos()
        return z - z.sin() + less.sum(dim=1, keepdim=True) + index * less

    z0 = spread(0.1, 0.5, batch, dtype) / size * torch.ones(size, dtype=dtype)
    settings = {**precision(dtype, absolute=True), **more}
    return Problem(f=f, z0=z0, exact=torch.zeros_like(z0), **settings)


def tridiagonal(
    *,
    size: int = 10,
    batch: int = 3,
    scale: float = 0.3,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """Broyden's: ``g_i = (3 - k x_i) x_i - x_(i-1) - 2 x_(i+1) + 1`` from -1; MGH 30 has k = 2.

    Samples differ in k.
    """
    k = spread(0.5, 2.0, batch, dtype)

    def f(z: Tensor, k: Tensor) -> Tensor:
        wide = pad(z, (1, 1))  # (B, N + 2)
        return z - scale * ((3 - k * z) * z - wide[:, :-2] - 2 * wide[:, 2:] + 1)

    z0 = -torch.ones(batch, size, dtype=dtype)
    return Problem(f=f, z0=z0, args=(k,), **{**precision(dtype), **more})
