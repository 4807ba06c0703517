"""What a distillation run shows at its end: see distill_cifar.py and distill_imagenet.py."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deqgen.evaluation.pictures import save_curves, save_rows
from deqgen.training import TrajectoryLoss, read_stats
from distillation.job import Job

COLUMNS = 16  # of samples.png


def write_log(directory: Path, names: Mapping[str, int]) -> None:
    """Join the models' statistics, as far as they go, in log.csv and draw them in loss.png.

    Args:
        directory: holds a folder with statistics for each model.
        names: name to number of supervised images. A loss is the weighted sum over them; divided by
            the sum of the weights it is a mean distance, and two models compare.
    """
    logs = {name: read_stats(directory / name.lower() / "stats.jsonl") for name in names}
    weights = {name: TrajectoryLoss().total_weight(count) for name, count in names.items()}
    with (directory / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "images", "loss", "mean_l1", "learning_rate", "seconds"])
        for name, rows in logs.items():
            writer.writerows(
                [
                    name,
                    r["images"],
                    r["loss"],
                    r["loss"] / weights[name],
                    r["learning_rate"],
                    r["seconds"],
                ]
                for r in rows
            )
    curves = {
        name: ([row["images"] for row in rows], [row["loss"] / weights[name] for row in rows])
        for name, rows in logs.items()
    }
    save_curves(curves, directory / "loss.png", ylabel="mean L1 distance over supervised states")


def write_pictures(path: Path, rows: Mapping[str, Tensor], job: Job) -> None:
    """Draw the first images of every row, one column a noise; latents by :func:`as_colours`."""
    shown = {title: images[:COLUMNS] for title, images in rows.items()}
    if job.latents:
        shown = as_colours(shown)
    class_names = job.teacher.class_names
    count = len(next(iter(shown.values())))
    columns = [class_names[i % len(class_names)] for i in range(count)] if class_names else []
    save_rows(shown, path, columns=columns)


def as_colours(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Show the first three channels of latents, in units of the largest value of the first row."""
    largest = float(next(iter(rows.values())).abs().max()) or 1.0
    return {
        title: images[:, : 3 if images.shape[1] > 2 else 1] / largest
        for title, images in rows.items()
    }


def print_table(metrics: Mapping[str, Any], job: Job) -> None:
    """Print the numbers that compare teacher and students, and where to look."""
    titles = ("teacher", *job.models)
    lines: list[tuple[str, str, str]] = [
        ("model", "model", "s"),
        ("passes of the network an image", "nfe", "d"),
        ("milliseconds an image", "seconds_per_image", "ms"),
        ("parameters (millions)", "parameters", "M"),
        ("GMACs an image", "gmacs", ".2f"),
        *job.task.scores,
        ("L1 distance to teacher's image", "pair_l1", ".3f"),
    ]
    print(f"\n{'':32s}" + "".join(f"{title:>15s}" for title in titles))
    for title, key, style in lines:
        cells = [format_cell(metrics[model.lower()].get(key), style) for model in titles]
        print(f"{title:32s}" + "".join(f"{cell:>15s}" for cell in cells))
    seconds, directory = metrics["seconds"], job.directory
    print(
        f"\n{metrics['pairs']} pairs cost {metrics['teacher_nfe_total']} teacher evaluations; "
        f"each student saw {metrics['training_images']} images. "
        f"{job.task.caveat.format(**metrics['teacher'])}"
        f"\nseconds: pairs {seconds['pairs']:.0f}, train {seconds['train']:.0f}, "
        f"evaluate {seconds['evaluate']:.0f}"
        f"\nlook at {directory / 'samples.png'} and {directory / 'loss.png'}; the numbers are in "
        f"{directory / 'metrics.json'}, the student in {directory / 'student.safetensors'}"
    )


def format_cell(value: Any, style: str) -> str:
    """Format one cell of the table; a dash for none."""
    if value is None or style == "s":
        return str(value or "-")
    scaled = {"ms": (1e3, ".1f"), "M": (1e-6, ".2f"), "%": (100, ".1f")}
    factor, digits = scaled.get(style, (1, style))
    return f"{value * factor:{digits}}" + ("%" if style == "%" else "")
