"""Cells of equilibrium models with random weights.

Letters: B samples, N unknowns, L tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from deqgen_solvers.problems.affine import affine_map
from deqgen_solvers.problems.problem import Problem, draws, precision


def tanh_rnn(
    gain: float = 0.8,
    *,
    size: int = 16,
    batch: int = 3,
    seed: int = 4,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """``z = tanh(W z + x)``, W with entries of deviation gain / sqrt(N), a radius near gain."""
    draw = draws(seed, dtype)
    w, x = gain * draw(batch, size, size) / size**0.5, draw(batch, size)
    settings = {**precision(dtype), "max_steps": 800, **more}
    return Problem(
        f=lambda z, w, x: affine_map(z, w, x).tanh(),
        z0=torch.zeros_like(x),
        args=(w, x),
        **settings,
    )


def attention_cell(
    *,
    tokens: int = 4,
    width: int = 6,
    batch: int = 3,
    seed: int = 5,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """One normalised attention block, ``z = norm(x + attention(z))``; the state is (B, L, D)."""
    draw = draws(seed, dtype)
    x = draw(batch, tokens, width)
    q, k, v = draw(3, width, width) / 2

    def f(z: Tensor, x: Tensor) -> Tensor:
        return layer_norm(x + _attend(z, q, k, v), (width,))

    return Problem(f=f, z0=torch.zeros_like(x), args=(x,), **{**precision(dtype), **more})


def transformer_cell(
    *,
    tokens: int = 5,
    width: int = 8,
    gain: float = 1.0,
    batch: int = 3,
    seed: int = 6,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> Problem:
    """A whole block after its injection: attention, then an MLP, each added and normalised.

    ``h = norm(z + x + attention(z))``, ``z = norm(h + mlp(h))``; the state is (B, L, D).
    """
    scale = gain / width**0.5
    draw = draws(seed, dtype)
    x = 2 * draw(batch, tokens, width)
    q, k, v, out = draw(4, width, width) * scale
    up = draw(width, 2 * width) * scale
    down = draw(2 * width, width) * scale / 2**0.5

    def f(z: Tensor, x: Tensor) -> Tensor:
        h = layer_norm(z + x + _attend(z, q, k, v) @ out, (width,))
        return layer_norm(h + gelu(h @ up) @ down, (width,))

    return Problem(f=f, z0=torch.zeros_like(x), args=(x,), **{**precision(dtype), **more})


def _attend(z: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Single-head attention of z (B, L, D) to itself, weights (D, D)."""
    scores = (z @ q) @ (z @ k).mT / z.shape[2] ** 0.5  # (B, L, L)
    return torch.softmax(scores, dim=-1) @ (z @ v)
