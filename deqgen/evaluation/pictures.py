"""Pictures to look at: rows of images for the same noise, and loss curves.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from deqgen.data.images import to_uint8


def save_rows(
    rows: Mapping[str, Tensor], path: str | Path, *, columns: Sequence[str] = (), scale: float = 0.8
) -> None:
    """Save images as a labelled grid, one row a model, one column a noise.

    Args:
        rows: row title to images in [-1, 1], ``(N, C, H, W)`` with one N for all; C is 1 or 3.
        path: a PNG file.
        columns: N column titles, or none.
        scale: inches an image.

    Raises:
        ValueError: no rows, rows of different lengths, or another number of titles.
    """
    lengths = {len(images) for images in rows.values()}
    if len(lengths) != 1:
        raise ValueError(f"rows of images must be of one length, got {sorted(lengths)}")
    (count,) = lengths
    if columns and len(columns) != count:
        raise ValueError(f"{count} columns need as many titles, got {len(columns)}")
    figure = Figure(figsize=(scale * (count + 1.5), scale * (len(rows) + 0.35)), dpi=120)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (title, images) in enumerate(rows.items()):
        pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, C)
        for column in range(count):
            axis = axes[row, column]
            axis.imshow(pixels[column].squeeze(), cmap="gray", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0 and columns:
                axis.set_title(columns[column], fontsize=7, pad=2)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(
        left=1.3 / (count + 1.5), right=0.995, bottom=0.01, top=0.92, wspace=0.04, hspace=0.04
    )
    figure.savefig(path)


def save_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | Path,
    *,
    xlabel: str = "training images",
    ylabel: str = "loss",
) -> None:
    """Save line plots.

    Args:
        curves: legend entry to ``(x, y)``, two sequences of one length.
        path: a PNG file.
        xlabel: what x is, with its unit.
        ylabel: what y is.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6, 3.6), dpi=120)
        axis = figure.subplots()
        for name, (x, y) in curves.items():
            axis.plot(np.asarray(x), np.asarray(y), label=name, marker="." if len(x) < 3 else None)
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path)
