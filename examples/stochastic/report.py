"""What stochastic_teacher.py writes at its end: two tables and four pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from deqgen.data import to_uint8
from deqgen.evaluation.pictures import save_rows
from stochastic.plan import EFFECTIVE, FIRST

Row = Mapping[str, Any]
COLOURS = {FIRST: "tab:blue", EFFECTIVE: "tab:orange"}
STYLE = {"axes.spines.top": False, "axes.spines.right": False}


def tables(results: Row) -> str:
    """Both tables, in Markdown."""
    students = results["students"]
    return teacher_table(results["teacher"]) + (f"\n{student_table(students)}" if students else "")


def teacher_table(rows: Sequence[Row]) -> str:
    """What decides the teacher's images, a line for each churn."""
    lines = [
        "| S_churn | fd_cifar10 | class recognised | decided by the first noise: pixels | features "
        "| recognised the same | by the effective noise: pixels | features "
        "| recognised the same | explained by the deterministic image of it: pixels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['fd_cifar10']:.2f}", f"{row['accuracy']:.1%}"]
        for kind in (FIRST, EFFECTIVE):
            share = row[kind]
            cells += [f"{share[key]:.1%}" for key in ("pixels", "features", "same")]
        cells.append(f"{row['deterministic']:.1%}")
        lines.append(f"| {row['churn']} | {' | '.join(cells)} |")
    images, same = rows[0]["images"], rows[0]["same_of_a_class"]
    return "\n".join(
        [
            *lines,
            "",
            f"fd_cifar10 on {images} images. Shares are of the variance within a class. Two images "
            f"of one class and of different noises are recognised the same in {same:.1%} of cases, "
            "without churn.",
            "",
        ]
    )


def student_table(rows: Sequence[Row]) -> str:
    """What students made of it, a line for each."""
    lines = [
        "| S_churn | the student is given | it could explain at most | explains | held-out L1 "
        "| fine detail | fd_cifar10 | its teacher's | class recognised |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {row['churn']} | {row['noise']} noise | {row['limit']:.1%} "
            f"| {row['explained']:.1%} | {row['held_out_l1']:.4f} "
            f"| {row['detail']:.1%} | {row['fd_cifar10']:.2f} "
            f"| {row['teacher_fd']:.2f} | {row['accuracy']:.1%} |"
            for row in rows
        ),
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"fd_cifar10 on {rows[0]['images']} images. Explained is the share of the variance "
            "within a class, in pixels, on held-out pairs. Fine detail is relative to the images "
            "that the student learnt from.",
            "",
        ]
    )


def draw_grid(path: Path, draws: Mapping[str, Tensor]) -> None:
    """A panel for each churn: a row holds its noise, and the columns draw the rest anew.

    Args:
        path: a PNG file.
        draws: title to images ``(rows, columns, C, H, W)``, of one shape.
    """
    rows, columns = next(iter(draws.values())).shape[:2]
    across = min(3, len(draws))
    down = -(-len(draws) // across)
    size = (across * max(columns * 0.5, 1.8), down * (rows * 0.5 + 0.5))
    with matplotlib.rc_context({"figure.constrained_layout.w_pad": 0.08}):
        figure = Figure(figsize=size, layout="constrained", dpi=120)
        panels = [*figure.subplots(down, across, squeeze=False).flat]
        for panel in panels:
            panel.set_axis_off()
        for panel, (title, images) in zip(panels, draws.items(), strict=False):
            panel.imshow(mosaic(images), interpolation="nearest")
            panel.set_title(title, fontsize=8)
        figure.savefig(path)


def mosaic(images: Tensor) -> np.ndarray[Any, Any]:
    """One picture ``(rows * H, columns * W, C)`` of images ``(rows, columns, C, H, W)``."""
    rows, columns, channels, height, width = images.shape
    flat = to_uint8(images).permute(0, 3, 1, 4, 2)  # (rows, H, columns, W, C)
    picture: np.ndarray[Any, Any] = flat.reshape(rows * height, columns * width, channels).numpy()
    return picture


def draw_shares(path: Path, rows: Sequence[Row]) -> None:
    """What decides the image, and how good the teacher is, against churn."""
    places = range(len(rows))
    titles = [row["churn"].replace(" below", "\nbelow") for row in rows]
    joined = sum("below" not in row["churn"] for row in rows)  # they come first
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
        left, right = figure.subplots(1, 2)
        for kind, colour in COLOURS.items():
            for key, style in (("pixels", "o-"), ("features", "s--")):
                share = [100 * row[kind][key] for row in rows]
                errors = [100 * row[kind][f"{key}_error"] for row in rows]
                left.errorbar(places, share, errors, fmt=style[0], color=colour)
                label = f"{kind} noise, {key}"
                left.plot(share[:joined], style, color=colour, label=label)
        left.axhline(0, color="grey", linewidth=0.8)
        left.set_ylabel("variance within a class\nthat the noise decides, %")
        left.legend(frameon=False, fontsize=8)
        right.bar(places, [row["fd_cifar10"] for row in rows], color="tab:grey")
        right.set_ylabel(f"fd_cifar10 of {rows[0]['images']} images of the teacher")
        for axis in (left, right):
            axis.set_xticks([*places], titles)
            axis.set_xlabel("S_churn")
        figure.savefig(path)


def draw_students(path: Path, rows: Sequence[Row]) -> None:
    """Bars: what the students explain, their error, sharpness and quality."""
    measures = (
        ("explained", 100, "variance within a class explained, %\n(lines: what the noise decides)"),
        ("held_out_l1", 1, "L1 distance on held-out pairs"),
        ("detail", 100, "fine detail, % of the teacher's"),
        ("fd_cifar10", 1, "fd_cifar10\n(lines: their teachers)"),
    )
    titles = [f"{row['churn']}\n{row['noise']}" for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 3.6), layout="constrained", dpi=120)
        for axis, (key, scale, label) in zip(
            figure.subplots(1, len(measures)), measures, strict=True
        ):
            colours = [COLOURS[row["noise"]] for row in rows]
            axis.bar(titles, [scale * row[key] for row in rows], color=colours)
            if key == "explained":
                limits = [scale * row["limit"] for row in rows]
                axis.plot(titles, limits, "k_", markersize=24)
            if key == "fd_cifar10":
                axis.plot(titles, [row["teacher_fd"] for row in rows], "k_", markersize=24)
            axis.set_title(label, fontsize=9)
            axis.tick_params(axis="x", labelsize=7)
        figure.supxlabel(
            "S_churn of the pairs, and the noise that the student is given", fontsize=9
        )
        figure.savefig(path)


def draw_samples(path: Path, rows: Mapping[str, Tensor], count: int = 12) -> None:
    """Held-out noises in columns; the teacher's images above those of its students."""
    save_rows({title: images[:count] for title, images in rows.items()}, path)
