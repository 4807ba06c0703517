"""What the tests of the torchdeq bridge share.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqgen_solvers.bridges import register_into_torchdeq


def torchdeq_with_ours() -> Any:
    """torchdeq, imported in the way that the bridge does, with our solvers in it."""
    register_into_torchdeq()
    return importlib.import_module("torchdeq")


class Counted:
    """Counts for itself, beside the driver."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f, self.calls = f, 0

    def __call__(self, z: Tensor, *args: Tensor) -> Tensor:
        self.calls += 1
        return self.f(z, *args)


class Watched:
    """f, with the points that it was called on and what it gave."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f = f
        self.points: list[Tensor] = []
        self.images: list[Tensor] = []

    def __call__(self, z: Tensor, *args: Tensor) -> Tensor:
        self.points.append(z.detach().clone())
        self.images.append(self.f(z, *args).detach())
        return self.images[-1]


@dataclass
class Affine:
    """z = a z + b for 3 samples of 12 unknowns; eigenvalues of a from -radius to radius."""

    radius: float

    def __post_init__(self) -> None:
        noise = torch.randn(3, 13, 12, generator=generator(0), dtype=torch.float64)
        q = torch.linalg.qr(noise[:, :12])[0]
        spectrum = torch.linspace(-self.radius, self.radius, 12, dtype=torch.float64)
        a, b = q @ torch.diag(spectrum) @ q.mT, noise[:, 12]
        self.args, self.z0 = (a, b), torch.zeros_like(b)
        eye = torch.eye(12, dtype=torch.float64)
        self.exact = torch.linalg.solve(eye - a, b.unsqueeze(2)).squeeze(2)

    @staticmethod
    def f(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (a @ z.unsqueeze(2)).squeeze(2) + b


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def residual(f: Callable[..., Tensor], z: Tensor, *args: Tensor) -> Tensor:
    return (f(z, *args) - z).flatten(1).norm(dim=1)
