"""What a network is told besides the pixels: where a token is, which class, how much noise.

Letters: B samples, L tokens, D width, S side of the token grid (L = S*S), K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deqgen.layers.errors import LabelError, NoiseLevelError


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


def noise_features(level: Tensor, size: int, max_period: float = 1000.0) -> Tensor:
    """Cosines and sines of a noise level, of geometrically spaced frequencies.

    Args:
        level: ``(B,)``, EDM's c_noise = ln(sigma) / 4.
        size: features; an odd one is rounded down.
        max_period: ratio of the largest frequency to the smallest.

    Returns:
        ``(B, size)`` float32.
    """
    # c_noise spans about [-1.6, 1.1] in EDM; the factor spreads it over the periods of the
    # sinusoids, as the time steps 0..1000 of DDPM are.
    exponents = torch.arange(size // 2, device=level.device) / (size // 2)
    angles = level[:, None].float() * (256.0 * max_period**-exponents)  # (B, size/2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, size)


class NoiseLevelEmbedding(nn.Module):
    """A row for each noise level: sinusoidal features, linear, SiLU, linear.

    Args:
        features: sinusoidal features, an even number.
        width: entries of a row.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.fc1 = nn.Linear(features, features)
        self.fc2 = nn.Linear(features, width)

    def forward(self, level: Tensor) -> Tensor:
        """``level`` (B,), EDM's c_noise: returns ``(B, width)``."""
        features = noise_features(level, self.features)  # (B, features)
        hidden = F.silu(self.fc1(features.to(self.fc1.weight.dtype)))  # (B, features)
        row: Tensor = self.fc2(hidden)  # (B, width)
        return row


def check_label(
    label: Tensor | None, num_classes: int | None, batch: int, *, null: bool = False
) -> None:
    """Raise :class:`LabelError` unless ``label`` suits a model with ``num_classes`` classes.

    With ``null`` the index ``num_classes`` is allowed too and means "no class". Looking at the
    values waits for the device once; under ``torch.compile`` only shape and dtype are looked at,
    since a look at the values would break the graph.
    """
    if num_classes is None:
        if label is not None:
            raise LabelError(
                "a label was given to an unconditional model; leave it out, or build the model "
                "with num_classes=..."
            )
        return
    extra = f" and {num_classes} for no class" if null else ""
    if label is None:
        raise LabelError(
            f"this model is conditional on {num_classes} classes and needs label (B,), int64, "
            f"with values from 0 to {num_classes - 1}{extra}; got None."
        )
    if label.dtype != torch.int64:
        raise TypeError(f"label must be int64, got {label.dtype}.")
    if tuple(label.shape) != (batch,):
        raise LabelError(
            f"label must have shape ({batch},), one class a sample; got {tuple(label.shape)}."
        )
    if not _values_can_be_seen(label):
        return
    low, high = (int(bound) for bound in torch.aminmax(label))
    if low < 0 or high >= num_classes + null:
        wrong = low if low < 0 else high
        raise LabelError(
            f"label holds {wrong}, but this model knows the {num_classes} classes "
            f"0 to {num_classes - 1}{extra}."
        )


def check_sigma(sigma: Tensor | None, batch: int, *, wanted: bool) -> None:
    """Raise :class:`NoiseLevelError` unless ``sigma`` suits a model that takes noise levels or not.

    Its values are looked at where those of a label would be.
    """
    if not wanted:
        if sigma is not None:
            raise NoiseLevelError(
                "sigma was given to a model without noise levels; leave it out, or build a GET or "
                "DEQ-UNet with noise_level=True."
            )
        return
    if sigma is None:
        raise NoiseLevelError(
            f"this model was built with noise_level=True and needs sigma ({batch},), the standard "
            "deviation of the noise in each image; got None. For one-step generation build it "
            "with noise_level=False."
        )
    if not isinstance(sigma, Tensor) or not sigma.is_floating_point():
        got = sigma.dtype if isinstance(sigma, Tensor) else type(sigma).__name__
        raise TypeError(f"sigma must be a floating-point tensor ({batch},), got {got}.")
    if tuple(sigma.shape) != (batch,):
        raise NoiseLevelError(
            f"sigma must have shape ({batch},), one noise level a sample; got {tuple(sigma.shape)}."
        )
    if not _values_can_be_seen(sigma):
        return
    low, high = (float(bound) for bound in torch.aminmax(sigma))
    if not 0 < low <= high < math.inf:  # a NaN fails too
        wrong = high if low > 0 else low
        raise NoiseLevelError(f"sigma must be positive and finite; it holds {wrong}.")


def _values_can_be_seen(tensor: Tensor) -> bool:
    """Whether there are values and a look at them breaks no graph."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or len(tensor) == 0)
