"""Dropout that leaves a cell a fixed map: one mask a solve (variational dropout).

A fixed point exists of one map only, so all evaluations of a solve must drop the same units (Gal &
Ghahramani 2016, arXiv 1512.05287; Bai et al. 2019, arXiv 1909.01377, for equilibria). The mask is
drawn before the solve and handed to the cell as an argument. A mask that the layer kept to itself
would be that of another solve when autograd recomputes a checkpointed cell in the backward pass,
and could not follow the rows that a solver with ``compact=True`` gathers; an argument does both, it
has one owner however many calls share the layer, and nobody can forget to reset it.

Letters: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from deqgen.layers.errors import ShapeError
from deqgen.layers.initial import per_sample


class VariationalDropout(nn.Module):
    """Zero each unit with probability ``p`` and scale the others by ``1/(1 - p)``.

    The layer holds no tensor and no state; each call site of a cell gets a mask of its own from
    :meth:`draw`, once a solve.

    Args:
        p: share of the units dropped, in [0, 1).
        dims: dimensions along which a sample has one draw: ``dims=(2, 3)`` drops whole channels of
            ``(B, C, H, W)``, ``dims=(1,)`` the same features of all tokens of ``(B, L, D)``.
            Negative ones count from the end. Never the first, which holds the samples.

    Raises:
        ValueError: if p lies outside [0, 1), or 0 is among ``dims``.

    Example:
        >>> dropout = VariationalDropout(0.1)
        >>> layer = DEQ(lambda z, x, mask: 0.5 * torch.tanh(dropout(z, mask)) + x)
        >>> x = torch.ones(2, 3)
        >>> equilibrium = layer(x, dropout.draw(x, torch.Generator().manual_seed(0)))
    """

    def __init__(self, p: float, dims: Sequence[int] = ()) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p is the share of units dropped and must lie in [0, 1), got {p!r}.")
        if 0 in dims:
            raise ValueError(f"dims={tuple(dims)} holds 0, but each sample needs its own mask.")
        self.p = float(p)
        self.dims = tuple(dims)

    def draw(self, like: Tensor, generator: Generator | Sequence[Generator]) -> Tensor | None:
        """Draw the mask of one call site for one solve.

        Args:
            like: ``(B, ...)``, of the shape and on the device of what will be dropped from.
            generator: one for the batch, where sample i takes the i-th draw, or one a sample. There
                is no default, since the same units would be dropped in every step of a training.

        Returns:
            Booleans ``(B, ...)``, True where a unit is kept, of length 1 along ``dims``: one row a
            sample, an argument that a solver may gather. None in evaluation and for ``p=0``, where
            nothing is dropped and nothing is drawn.

        Raises:
            ShapeError: if ``like`` has no such dimension as ``dims`` names, or no batch.
            ValueError, TypeError: if the generators do not fit the batch.
        """
        shape = list(self._shape(like))
        if not self.training or self.p == 0:
            return None
        rows = [_uniform(shape[1:], one) for one in per_sample(generator, shape[0])]
        if not rows:
            return torch.empty(shape, dtype=torch.bool, device=like.device)
        return torch.stack([(row >= self.p).to(like.device) for row in rows])  # (B, ...)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Drop from ``x`` (B, ...) what ``mask`` says; the dtype of ``x`` is kept.

        Args:
            x: ``(B, ...)``.
            mask: from :meth:`draw`. It decides, whatever the mode: a mask drawn in training drops
                in evaluation too. None drops nothing.

        Raises:
            ValueError: if the mask is missing in training.
            TypeError: if it does not hold booleans.
            ShapeError: if it does not have the shape that :meth:`draw` gives for ``x``.
        """
        if mask is None:
            if self.training and self.p > 0:
                raise ValueError(
                    f"VariationalDropout(p={self.p}) needs a mask in training; draw one a solve, "
                    "mask = dropout.draw(x, generator), and hand it to the cell as an argument."
                )
            return x
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask holds booleans, True where a unit is kept; got {mask.dtype}.")
        if mask.shape != self._shape(x):  # it would broadcast, over samples too
            raise ShapeError(
                f"the mask has shape {tuple(mask.shape)}, but x of shape {tuple(x.shape)} needs "
                f"{tuple(self._shape(x))}; draw it like what it is applied to."
            )
        return x * mask * (1 / (1 - self.p))  # a NaN stays one, for the solver to see

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}, dims={self.dims}"

    def _shape(self, x: Tensor) -> torch.Size:
        """Shape of the mask for ``x``."""
        shape = list(x.shape)
        for dim in self.dims:
            if not 1 <= (dim + x.ndim if dim < 0 else dim) < x.ndim:
                raise ShapeError(
                    f"dims={self.dims} names dimension {dim}; of a tensor of shape "
                    f"{tuple(x.shape)} those from 1 to {x.ndim - 1} can share a draw."
                )
            shape[dim] = 1
        if not shape:
            raise ShapeError("a scalar has no samples; a mask has one row a sample.")
        return torch.Size(shape)


def _uniform(shape: Sequence[int], generator: Generator) -> Tensor:
    """In [0, 1), in float32 on the generator's device: the same mask for a state of any dtype."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
