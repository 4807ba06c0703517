"""Measure a teacher at several guidance scales, and draw its samples.

    python examples/measure_teacher.py --teacher cifar10-small --scales 1 2 3 --count 1000

Guidance makes objects clearer and pictures more alike: fd_cifar10 has a minimum in the scale, and
the accuracy with which the classifier recognises the asked class keeps rising. An --interval limits
guidance to the noise levels where it helps (arXiv 2404.07724) and so costs fewer evaluations.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from deqgen.data import noise_for
from deqgen.evaluation import evaluate
from deqgen.evaluation.pictures import save_rows
from deqgen.teachers import Guidance, Teacher, load_teacher
from deqgen.training.run_folder import write_json


@dataclass(frozen=True)
class Options:
    """What to measure."""

    teacher: str = "cifar10-small"
    """Name of a teacher, or its file."""
    scales: tuple[float, ...] = (1.0, 2.0, 3.0)
    """Guidance scales; 1 is none."""
    interval: tuple[float, float] | None = None
    """Guide only between these two noise levels."""
    count: int = 1000
    """Images for each scale; fd_cifar10 depends on it."""
    batch_size: int = 100
    """Images at a time."""
    precision: str = "bfloat16"
    """Of the network."""
    output_dir: Path = Path("runs/measure_teacher")
    """Where metrics.json and samples.png go."""


def sample(teacher: Teacher, count: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Images of seeds 0..count-1, classes in turn; and their labels."""
    labels = torch.arange(count) % teacher.num_classes
    images = [
        teacher.sample(noise_for(seeds.tolist(), teacher.image_shape), labels[seeds]).cpu()
        for seeds in torch.arange(count).split(batch_size)
    ]
    return torch.cat(images), labels


def main(options: Options) -> None:
    if options.count < 2 or options.batch_size < 1:
        raise ValueError("--count must be at least 2 and --batch-size at least 1")
    teacher = load_teacher(options.teacher, precision=options.precision)
    if not teacher.num_classes:
        raise ValueError(f"teacher {teacher.name!r} is unconditional: there is nothing to guide")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    sample(teacher, 2, 2)  # first calls are slow
    rows: dict[str, Tensor] = {}
    results: list[dict[str, Any]] = []
    for scale in options.scales:
        guided = teacher.replace(guidance=Guidance(scale=scale, interval=options.interval))
        start = time.perf_counter()
        images, labels = sample(guided, options.count, options.batch_size)
        seconds = time.perf_counter() - start
        report = evaluate(images, labels)
        cost = {"nfe": guided.nfe, "seconds_per_image": seconds / options.count}
        settings = {"scale": scale, "interval": options.interval}
        results.append({**settings, **cost, **report.to_dict()})
        print(
            f"scale {scale:4.1f}  nfe {guided.nfe:3d}  fd_cifar10 {report.fd_cifar10:7.2f}  "
            f"score {report.inception_style_score:5.2f}  recognised {report.accuracy:6.1%}",
            flush=True,
        )
        rows[f"scale {scale:g}"] = images[:20]
        names = [teacher.class_names[i] for i in labels[:20]] if teacher.class_names else []
        save_rows(rows, options.output_dir / "samples.png", columns=names)
        write_json(options.output_dir / "metrics.json", results)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was measured so far is in the output folder")
    except (ValueError, OSError) as error:
        sys.exit(f"measure_teacher: {error}")
