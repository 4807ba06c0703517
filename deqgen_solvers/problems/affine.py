"""Affine maps z -> A z + b, whose fixed point a dense solve gives.

Letters: B samples, N unknowns of one sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deqgen_solvers.errors import OptionError
from deqgen_solvers.problems.problem import Problem, draws, precision


def affine_map(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A z + b for each sample: z (B, N), a (B, N, N), b (B, N) -> (B, N)."""
    return torch.einsum("bij,bj->bi", a, z) + b


def affine(
    a: Tensor,
    *,
    b: Tensor | None = None,
    seed: int = 1,
    dtype: torch.dtype | None = None,
    **more: Any,
) -> Problem:
    """``z = A z + b`` from z0 = 0.

    Args:
        a: (B, N, N) in double precision, without eigenvalue 1.
        b: (B, N); drawn by ``seed`` if left out.
        seed: of b.
        dtype: of the state, ``a.dtype`` if left out. The exact solution is rounded to it, so a
            problem in float32 is that in float64, rounded.
        more: further fields of the `Problem`.
    """
    dtype = a.dtype if dtype is None else dtype
    b = draws(seed, a.dtype)(*a.shape[:2]) if b is None else b
    inverse = torch.linalg.inv(torch.eye(a.shape[1], dtype=a.dtype) - a)  # (B, N, N)
    exact = torch.einsum("bij,bj->bi", inverse, b)
    tol = precision(dtype)["tol"]
    # z - exact = inverse @ (z - f(z)); the rounding of f and of A counts as a residual too.
    gain = float(torch.linalg.matrix_norm(inverse, ord=2).max())
    error = gain * (2 * tol.rtol + 8 * torch.finfo(dtype).eps)
    a, b, exact = a.to(dtype), b.to(dtype), exact.to(dtype)
    settings = {"tol": tol, "error": error, **more}
    return Problem(f=affine_map, z0=torch.zeros_like(b), args=(a, b), exact=exact, **settings)


def with_spectrum(
    low: float,
    high: float,
    skew: float = 0.0,
    *,
    size: int = 12,
    batch: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """Real eigenvalues, evenly spread over [low, high], in a random orthonormal basis.

    ``skew`` scales a random part above the diagonal of the Schur form: 0 is a normal matrix, and
    0.3 one whose powers grow before they shrink. A complex dtype has a unitary basis.
    """
    wide = torch.complex128 if dtype.is_complex else torch.float64
    noise = draws(seed, wide)(batch, size, size)
    q = torch.linalg.qr(noise)[0]
    middle = torch.diag(torch.linspace(low, high, size, dtype=wide)) + skew * noise.triu(1)
    return affine(q @ middle @ q.mH, seed=seed + 1, dtype=dtype, **more)


def rotation(
    radius: float,
    *,
    size: int = 6,
    batch: int = 3,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """Complex pairs of eigenvalues of one radius and angles between 0.4 and 2.4; ``size`` even.

    No power of A does more for one direction than for another: at a radius of 1 or more the answer
    must be found by combining iterates, not by waiting.

    Raises:
        OptionError: ``size`` is odd.
    """
    if size % 2:
        raise OptionError(f"rotation: size must be even, one pair of unknowns a plane; got {size}.")
    angle = torch.linspace(0.4, 2.4, batch * (size // 2), dtype=torch.float64).reshape(batch, -1)
    c, s = angle.cos(), angle.sin()
    blocks = torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)
    # Blocks (B, N/2, 2, 2) on the diagonal of (B, N/2, 2, N/2, 2), which is (B, N, N).
    a = radius * torch.einsum("bkij,kl->bkilj", blocks, torch.eye(size // 2, dtype=angle.dtype))
    a = a.reshape(batch, size, size)
    return affine(a, seed=seed, dtype=dtype, **more)


def complex_contraction(
    norm: float = 0.8,
    *,
    size: int = 6,
    batch: int = 3,
    seed: int = 3,
    dtype: torch.dtype = torch.complex128,
    **more: Any,
) -> Problem:
    """A random complex matrix of the given spectral norm: eigenvalues anywhere, non-normal."""
    a = draws(seed, torch.complex128)(batch, size, size)
    a = norm * a / torch.linalg.matrix_norm(a, ord=2, keepdim=True)
    return affine(a, seed=seed + 1, dtype=dtype, **more)


def diagonal(
    radius: float = 0.9,
    *,
    size: int = 64,
    batch: int = 1,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """``z -> d z + 1`` with d evenly spread over [-radius, radius].

    A ridge that is not relative to the scale of the least-squares problem shows here: at radius 0.9
    Anderson with five differences takes 88 evaluations to 1e-10, and with an absolute ridge of 1e-4
    several times that, more than plain iteration.
    """
    d = torch.linspace(-radius, radius, size, dtype=torch.float64)
    a = torch.diag(d).expand(batch, size, size).contiguous()
    return affine(a, b=torch.ones(batch, size, dtype=torch.float64), dtype=dtype, **more)


def poisson(
    *,
    size: int = 8,
    batch: int = 3,
    scale: float = 1.0,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """``T x = b``, T the second difference in one dimension, as ``z = z - scale * (T z - b)``.

    The eigenvalues lie in (1 - 4 scale, 1): scale 1/2 is Jacobi's iteration, scale 1 expands.
    """
    identity = torch.eye(size, dtype=torch.float64)
    a = (identity - scale * second_difference(size)).expand(batch, size, size).contiguous()
    return affine(a, seed=seed, dtype=dtype, **more)


def second_difference(size: int) -> Tensor:
    """The matrix (N, N) with 2 on the diagonal and -1 beside it."""
    beside = torch.ones(size - 1, dtype=torch.float64)
    return 2 * torch.eye(size, dtype=torch.float64) - beside.diag(1) - beside.diag(-1)
