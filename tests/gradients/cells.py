"""Small contractions whose derivatives are known, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deqgen.gradients import Forward
from deqgen_solvers import Tolerance

TIGHT = Tolerance(atol=0.0, rtol=1e-13)
EXACT = Forward(solver="picard", tol=TIGHT, max_steps=2000)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(size: int, norm: float, seed: int) -> Tensor:
    """A (size, size) matrix of the given spectral norm."""
    a = torch.randn(size, size, generator=seeded(seed), dtype=torch.float64)
    return a * (norm / torch.linalg.matrix_norm(a, 2))


class Tanh(nn.Module):
    """f(z, x) = tanh(A z + x + b): a contraction of rate |A|."""

    def __init__(self, size: int = 4, norm: float = 0.7, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix(size, norm, seed))
        self.bias = nn.Parameter(0.1 * torch.ones(size, dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight.T + x + self.bias)


def inputs(batch: int = 3, size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """z0 = 0 and x (B, size), which wants a gradient."""
    x = torch.randn(batch, size, generator=seeded(seed), dtype=torch.float64)
    return torch.zeros_like(x), x.requires_grad_()


def loss(z: Tensor) -> Tensor:
    """Uneven in every entry, so that no error cancels."""
    weights = torch.arange(1.0, z.numel() + 1, dtype=z.dtype).reshape(z.shape).cos()
    return (weights * z + z**3 / 3).sum()


def gradients(value: Tensor, *wanted: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, wanted))


def difference_quotient(function: Callable[[], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function in every entry of ``at``."""
    slopes = torch.zeros_like(at)
    with torch.no_grad():
        for index in range(at.numel()):
            entry = at.view(-1)[index : index + 1]
            kept = entry.clone()
            entry.copy_(kept + step)
            above = function()
            entry.copy_(kept - step)
            slopes.view(-1)[index] = (above - function()) / (2 * step)
            entry.copy_(kept)
    return slopes
