"""What a token carries besides its pixels: where it is, and which class it belongs to.

Letters: B samples, L tokens, D width, S side of the token grid (L = S*S), K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deqgen.layers.errors import LabelError


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed two-dimensional sine and cosine positions.

    Half of the width encodes the column of a token and half its row; each half holds
    ``width / 4`` sines, then as many cosines, of geometrically spaced frequencies
    (Vaswani et al. 2017, arXiv 1706.03762, section 3.5, once per axis).

    Args:
        side: tokens per row and per column (S).
        width: width of a token (D), a multiple of 4.

    Returns:
        ``(1, S*S, D)`` in float32 on the CPU, rounded from float64.

    Raises:
        ValueError: if ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"width={width} cannot hold two-dimensional sine and cosine positions: "
            "it must be a multiple of 4."
        )
    index = torch.arange(width // 4, dtype=torch.float64, device="cpu")
    frequency = torch.exp(index * (-math.log(10_000.0) / (width // 4)))  # (D/4,)
    place = torch.arange(side, dtype=torch.float64, device="cpu")  # (S,)
    angle = torch.outer(place, frequency)  # (S, D/4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (S, D/2)
    column = axis[None, :, :].expand(side, side, -1)  # (S, S, D/2)
    row = axis[:, None, :].expand(side, side, -1)  # (S, S, D/2)
    grid = torch.cat([column, row], dim=-1)  # (S, S, D)
    return grid.reshape(1, side * side, width).float()  # (1, L, D)


class LabelEmbedding(nn.Module):
    """A learned row for each class.

    Args:
        num_classes: classes (K).
        width: entries of a row; GET uses ``3*D``, so that the row can be added to queries, keys
            and values at once.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes, width)

    def forward(self, label: Tensor) -> Tensor:
        """Look up ``label`` (B,), int64, in ``[0, K)``: returns ``(B, width)``."""
        rows: Tensor = self.embedding_table(label)  # (B, width)
        return rows


def check_label(label: Tensor | None, num_classes: int | None, batch: int) -> None:
    """Raise :class:`LabelError` unless ``label`` suits a model with ``num_classes`` classes.

    Looking at the values waits for the device once; under ``torch.compile`` only shape and dtype
    are looked at, since a look at the values would break the graph.
    """
    if num_classes is None:
        if label is not None:
            raise LabelError(
                "a label was given to an unconditional model; leave it out, or build the model "
                "with num_classes=..."
            )
        return
    if label is None:
        raise LabelError(
            f"this model is conditional on {num_classes} classes and needs label (B,), int64, "
            f"with values from 0 to {num_classes - 1}; got None."
        )
    if label.dtype != torch.int64:
        raise TypeError(f"label must be int64, got {label.dtype}.")
    if tuple(label.shape) != (batch,):
        raise LabelError(
            f"label must have shape ({batch},), one class a sample; got {tuple(label.shape)}."
        )
    if torch.compiler.is_compiling() or label.is_meta or batch == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(label))
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise LabelError(
            f"label holds {wrong}, but this model knows the {num_classes} classes "
            f"0 to {num_classes - 1}."
        )
