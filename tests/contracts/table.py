"""One table of methods, one table of problems. Expected failures are rows of data, not skips.

A new method gets a row in METHODS and is tested by everything in this folder.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deqgen_solvers import Anderson, Broyden, Picard, Solver, Tolerance

METHODS: dict[str, Solver[Any]] = {
    "picard": Picard(),
    "picard-damped": Picard(damping=0.5),
    "anderson": Anderson(),
    "anderson-long": Anderson(memory=20),
    "anderson-damped": Anderson(damping=0.7),
    "broyden": Broyden(),
    "broyden-short": Broyden(memory=3),
}


@dataclass(frozen=True)
class Problem:
    """B independent problems z = f(z, *args), with one row of args a sample.

    ``exact`` is the solution, or None where only the residual can be checked. ``error`` is how far
    from it (relative) a point within ``tol`` may be: about tol / (distance of the Jacobian from 1).
    """

    f: Callable[..., Tensor]
    z0: Tensor
    args: tuple[Tensor, ...]
    exact: Tensor | None
    tol: Tolerance = field(default_factory=lambda: Tolerance(atol=0.0, rtol=1e-9))
    error: float = 1e-6
    max_steps: int = 400


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine_map(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """z (B, N), a (B, N, N), b (B, N)."""
    return torch.einsum("bij,bj->bi", a, z) + b


def affine(a: Tensor, seed: int = 1, **settings: Any) -> Problem:
    """z = a z + b with the exact solution by a dense solve."""
    b = torch.randn(a.shape[:2], generator=generator(seed), dtype=a.dtype)
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    exact = torch.linalg.solve(eye - a, b.unsqueeze(2)).squeeze(2)
    return Problem(affine_map, torch.zeros_like(b), (a, b), exact, **settings)


def with_spectrum(low: float, high: float, skew: float = 0.0, size: int = 12, **settings: Any):
    """Eigenvalues spread over [low, high]; ``skew`` adds a non-normal part above the diagonal."""
    noise = torch.randn(3, size, size, generator=generator(0), dtype=torch.float64)
    q = torch.linalg.qr(noise)[0]
    middle = torch.diag(torch.linspace(low, high, size, dtype=torch.float64)) + skew * noise.triu(1)
    return affine(q @ middle @ q.mT, **settings)


def rotation(radius: float) -> Problem:
    """Complex pairs of eigenvalues of one radius and angles between 0.4 and 2.4."""
    angle = torch.linspace(0.4, 2.4, 9, dtype=torch.float64).reshape(3, 3)
    c, s = angle.cos(), angle.sin()
    blocks = torch.stack((torch.stack((c, -s), -1), torch.stack((s, c), -1)), -2)
    return affine(radius * torch.stack([torch.block_diag(*sample) for sample in blocks]))


def complex_affine() -> Problem:
    a = torch.randn(3, 6, 6, generator=generator(3), dtype=torch.complex128)
    return affine(0.8 * a / torch.linalg.matrix_norm(a, ord=2, keepdim=True))


def tanh_rnn(gain: float) -> Problem:
    g = generator(4)
    w = gain * torch.randn(3, 16, 16, generator=g, dtype=torch.float64) / 4
    x = torch.randn(3, 16, generator=g, dtype=torch.float64)
    z0 = torch.zeros_like(x)
    return Problem(lambda z, w, x: affine_map(z, w, x).tanh(), z0, (w, x), None, max_steps=800)


def cosine() -> Problem:
    z0 = torch.tensor([[0.0], [3.0], [-50.0]], dtype=torch.float64)
    return Problem(torch.cos, z0, (), torch.full_like(z0, 0.7390851332151607))


def attention_cell() -> Problem:
    """One normalised attention block over 4 tokens of width 6: z = norm(x + attention(z))."""
    g = generator(5)
    x = torch.randn(3, 4, 6, generator=g, dtype=torch.float64)
    q, k, v = torch.randn(3, 6, 6, generator=g, dtype=torch.float64) / 2

    def f(z: Tensor, x: Tensor) -> Tensor:
        weights = torch.softmax((z @ q) @ (z @ k).mT / 6**0.5, dim=-1)
        return torch.nn.functional.layer_norm(x + weights @ (z @ v), (6,))

    return Problem(f, torch.zeros_like(x), (x,), None)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "contraction 0.5": lambda: with_spectrum(-0.5, 0.5),
    "contraction 0.9": lambda: with_spectrum(-0.9, 0.9),
    "contraction 0.99": lambda: with_spectrum(-0.99, 0.99, max_steps=1800),
    "contraction 0.9, float32": lambda: single(with_spectrum(-0.9, 0.9)),
    "non-normal 0.8": lambda: with_spectrum(-0.8, 0.8, skew=0.3),
    "expansion to the left": lambda: with_spectrum(-2.5, 0.5),
    "expansion to the right": lambda: with_spectrum(1.5, 3.0),
    "rotation 0.9": lambda: rotation(0.9),
    "rotation 1.1": lambda: rotation(1.1),
    "complex": complex_affine,
    "cosine": cosine,
    "tanh 0.8": lambda: tanh_rnn(0.8),
    "tanh 1.5": lambda: tanh_rnn(1.5),
    "attention": attention_cell,
}


def single(problem: Problem) -> Problem:
    """The same in float32."""
    assert problem.exact is not None
    return Problem(
        problem.f,
        problem.z0.float(),
        tuple(arg.float() for arg in problem.args),
        problem.exact.float(),
        Tolerance(atol=0.0, rtol=1e-5),
        error=1e-3,
    )


ALL = (0, 1, 2)

FAILURES: dict[tuple[str, str], tuple[int, ...]] = {
    # Too slow: 0.995 a step, 1800 steps.
    ("picard-damped", "contraction 0.99"): ALL,
    # An eigenvalue left of -1 needs damping below 2 / 3.5 = 0.57 ...
    ("picard", "expansion to the left"): ALL,
    # ... and right of 1 none helps.
    ("picard", "expansion to the right"): ALL,
    ("picard-damped", "expansion to the right"): ALL,
    # Radius above 1; damping by 1/2 helps where the angles are wide.
    ("picard", "rotation 1.1"): ALL,
    ("picard-damped", "rotation 1.1"): (0,),
    # Three complex pairs, outside the unit circle, ask for more than three directions.
    ("broyden-short", "rotation 1.1"): (0,),
    # The cell repels; it cycles.
    ("picard", "attention"): ALL,
    ("picard-damped", "attention"): (0,),
}
"""(method, problem) -> the samples that must fail. All others must converge."""
