"""Pre-norm transformer blocks whose queries, keys and values take an additive input.

In GET everything that enters a block from outside (the injection, the class) is added to the
QKV projection; what does not change over the iterations is summed once by :meth:`Attention.fold`
and handed to every application.

Letters: B samples, L tokens, D width, M heads, E = D/M width of a head, R ratio of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# On a CPU in bfloat16, PyTorch 2.13's fused attention takes 2 to 7 times as long as two plain
# batched products, forward and backward, from 64 to 256 tokens; they break even near 1,000, where
# the attention maps (B*M*L*L) would also begin to weigh. In float32 the fused kernel wins.
_PLAIN_PRODUCTS_UP_TO = 512


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention, scale ``1/sqrt(E)``, by whichever route is fastest for these tensors.

    Args:
        query: ``(B, M, L, E)``; ``key`` and ``value`` likewise.

    Returns:
        ``(B, M, L, E)``.
    """
    small = query.shape[-2] <= _PLAIN_PRODUCTS_UP_TO
    if small and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        batch, heads, tokens, width = query.shape
        q, k, v = (t.reshape(batch * heads, tokens, width) for t in (query, key, value))
        # The scale goes into the product, which saves a pass; the compiler, which would put the
        # fused attention back where it sees bmm, softmax, bmm, lets this stand.
        nothing = q.new_zeros(1, 1, 1)  # what baddbmm adds, times beta
        scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=width**-0.5)
        weights = scores.softmax(dim=-1)  # (B*M, L, L)
        return torch.bmm(weights, v).view(batch, heads, tokens, width)  # (B, M, L, E)
    return F.scaled_dot_product_attention(query, key, value)  # (B, M, L, E)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with an additive input to QKV.

    Args:
        width: width of a token (D).
        heads: heads (M), a divisor of ``width``.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}.")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    @overload
    def fold(self, row: Tensor | None) -> Tensor | None: ...

    @overload
    def fold(self, row: Tensor | None, token: Tensor) -> Tensor: ...

    def fold(self, row: Tensor | None, token: Tensor | None = None) -> Tensor | None:
        """Sum what is added to QKV, the projection's own bias included.

        Args:
            row: ``(B, 3*D)``, one for all tokens of a sample: the class.
            token: ``(B, L, 3*D)``, one a token: the injection. Its dtype is kept, so that under
                autocast the sum is rounded once and not again in every iteration.

        Returns:
            ``(B, 1, 3*D)`` or ``(B, L, 3*D)``; None if there is nothing but the bias.
        """
        if row is None and token is None:
            return None
        bias = self.qkv.bias if row is None else (self.qkv.bias + row)[:, None, :]  # (B, 1, 3*D)
        return bias if token is None else token + bias.to(token.dtype)  # (B, L, 3*D)

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """``x`` (B, L, D) to (B, L, D); ``addend`` from :meth:`fold` stands in for the QKV bias."""
        batch, tokens, width = x.shape
        if addend is None:
            qkv = self.qkv(x)  # (B, L, 3*D)
        else:
            product = F.linear(x, self.qkv.weight)  # (B, L, 3*D)
            qkv = product + addend.to(product.dtype)  # (B, L, 3*D)
        parts = qkv.view(batch, tokens, 3, self.heads, width // self.heads)  # (B, L, 3, M, E)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, M, L, E) each
        mixed = attend(query, key, value)  # (B, M, L, E)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # (B, L, D)
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, linear, with ``ratio * width`` hidden units."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, L, D) to (B, L, D)."""
        hidden = F.gelu(self.fc1(x))  # (B, L, R*D)
        out: Tensor = self.fc2(hidden)  # (B, L, D)
        return out


class Block(nn.Module):
    """A pre-norm transformer block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        width: width of a token (D).
        heads: attention heads (M), a divisor of ``width``.
        mlp_ratio: hidden units of the MLP per unit of width (R).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(
        self, x: Tensor, addend: Tensor | None = None, *, row: Tensor | None = None
    ) -> Tensor:
        """``x`` (B, L, D) to (B, L, D).

        Args:
            x: tokens.
            addend: as in :meth:`Attention.forward`.
            row: for a block that is applied once, ``(B, 3*D)``: what is yet to be folded.
        """
        addend = self.attn.fold(row) if addend is None else addend  # (B, 1 or L, 3*D)
        x = x + self.attn(self.norm1(x), addend)  # (B, L, D)
        x = x + self.mlp(self.norm2(x))  # (B, L, D)
        return x


class BlockList(nn.ModuleList):
    """``count`` blocks of one size, to be applied in order."""

    def __init__(self, count: int, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(Block(width, heads, mlp_ratio) for _ in range(count))

    def __iter__(self) -> Iterator[Block]:
        """Iterate over the blocks; narrower than the base class, for type checkers."""
        return cast("Iterator[Block]", super().__iter__())
