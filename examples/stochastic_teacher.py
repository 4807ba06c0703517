"""Offline pairs from a teacher that draws noise on the way: what is lost, and one remedy.

    python examples/stochastic_teacher.py --compile

Distillation from noise/image pairs needs an image that is a function of its noise (arXiv
2401.08639). A churned sampler (EDM, arXiv 2206.00364, Algorithm 2) adds fresh noise at each step.
For each S_churn is measured how much of an image its first noise still decides: the noise is held,
the rest drawn anew, and what varies is compared with what varies within a class. Students of equal
budget then learn from pairs of some of these teachers. One that is given the first noise alone can
learn no more than a mean of all that the rest may bring. The remedy gives it the effective noise in
its place: one sum of all draws, made from the pairs' seeds, see stochastic/noise.py. The sampler is
EDM's, 18 steps of Heun, for which churn is defined: 47 evaluations an image with guidance.

Written are results.json, table.md, draws.png, shares.png, students.png and samples.png. The preset
"cpu" takes about an hour of one core with bfloat16 in hardware, and twice that without --compile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from deqgen.atomic import write_text
from deqgen.teachers import Sampler, load_teacher
from deqgen.teachers.names import unknown
from deqgen.training.run_folder import Stopwatch, claim_folder, write_json
from distillation.ending import ending
from distillation.job import has_bfloat16
from stochastic.bench import Bench
from stochastic.plan import EFFECTIVE, FIRST, STUDIES, Setting
from stochastic.report import (
    draw_grid,
    draw_samples,
    draw_shares,
    draw_students,
    tables,
)

RESULTS = "results.json"
ROWS = 4  # of a panel of draws.png


@dataclass(frozen=True)
class Options:
    """What to run."""

    preset: str = "cpu"
    """cpu (an hour), or smoke (seconds, for tests)."""
    output_dir: Path | None = None
    """Where everything goes; runs/stochastic_teacher-PRESET by default."""
    seed: int = 0
    """Of the pairs, the initial weights and the training."""
    compile: bool = False
    """Compile the teacher, which is then twice as fast; needs a C++ compiler on a CPU. May change
    between runs."""


def open_bench(options: Options) -> tuple[Bench, Stopwatch]:
    """Check the options and take the folder."""
    if options.preset not in STUDIES:
        raise ValueError(unknown("preset", options.preset, STUDIES))
    if not 0 <= options.seed <= 200:
        raise ValueError(f"--seed must lie in 0..200, got {options.seed}")
    study = STUDIES[options.preset]
    precision = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    sampler = Sampler(steps=study.steps)
    teacher = load_teacher("cifar10-small", sampler=sampler, precision=precision)
    folder = options.output_dir or Path("runs") / f"stochastic_teacher-{options.preset}"
    made = {"study": study.describe(), "teacher": teacher.describe(), "seed": options.seed}
    claim_folder(folder, made)
    if options.compile:  # where it stands, once: the teachers of all settings share it
        teacher.denoiser.compile(options={"freezing": True})
    return Bench(study, teacher, folder, options.seed, precision), Stopwatch(folder)


def measure_teacher(bench: Bench, watch: Stopwatch) -> list[dict[str, Any]]:
    """The first table, and its pictures."""
    rows, grid = [], {}
    for setting in bench.study.settings:
        with watch.stage("pairs"):
            bench.pairs(setting)
        with watch.stage("draws"):
            rows.append(bench.shares(setting))
        kinds = (FIRST, EFFECTIVE) if setting in bench.study.taught and setting.amount else (FIRST,)
        for kind in kinds:
            grid[f"S_churn {setting.title}\n{kind} noise held"] = shown(bench, setting, kind)
        print(progress(rows[-1]), flush=True)
    draw_grid(bench.folder / "draws.png", grid)
    draw_shares(bench.folder / "shares.png", rows)
    return rows


def progress(row: dict[str, Any]) -> str:
    first, effective = (f"{row[kind]['pixels']:.1%}" for kind in (FIRST, EFFECTIVE))
    return (
        f"S_churn {row['churn']:10s} fd_cifar10 {row['fd_cifar10']:6.2f}  of the pixels' variance "
        f"the first noise decides {first}, the effective {effective}"
    )


def shown(bench: Bench, setting: Setting, kind: str) -> torch.Tensor:
    """Images of one noise a row, ``(ROWS, draws, C, H, W)``; all the same without churn."""
    count = bench.study.draws
    if setting.amount:
        return bench.draws(setting, kind)[: ROWS * count].unflatten(0, (-1, count))
    return bench.deterministic()[:ROWS, None].expand(-1, count, -1, -1, -1)


def measure_students(
    bench: Bench, watch: Stopwatch, limits: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The second table, and its pictures."""
    for setting in bench.study.taught:
        with watch.stage("pairs"):
            bench.pairs(setting, held_out=True)
    rows, samples = [], {}
    for student in bench.study.students:
        with watch.stage("train"):
            model = bench.learn(student)
        with watch.stage("evaluate"):
            limit = limits[student.setting.title][student.noise]["pixels"]
            row, images = bench.measure(student, model, limit)
        rows.append(row)
        churn = f"churn {student.setting.title}"
        samples[f"{churn}\nteacher"] = images["teacher"]
        samples[f"{churn}\n{student.noise} noise"] = images["student"]
    draw_students(bench.folder / "students.png", rows)
    draw_samples(bench.folder / "samples.png", samples)
    return rows


def run(bench: Bench, watch: Stopwatch) -> dict[str, Any]:
    """Measure the teacher, then the students; write the results after each, and return them."""
    results: dict[str, Any] = {
        "teacher_nfe": bench.teacher.nfe,
        "teacher_images": bench.study.teacher_images,
        "teacher": measure_teacher(bench, watch),
        "students": [],
    }
    write_results(bench.folder, results, watch)
    limits = {row["churn"]: row for row in results["teacher"]}
    results["students"] = measure_students(bench, watch, limits)
    write_results(bench.folder, results, watch)
    return results


def write_results(folder: Path, results: dict[str, Any], watch: Stopwatch) -> None:
    results["seconds"] = {stage: round(seconds, 1) for stage, seconds in watch.seconds.items()}
    write_text(folder / "table.md", f"# Stochastic teachers\n\n{tables(results)}")
    write_json(folder / RESULTS, results)


def main(options: Options) -> None:
    bench, watch = open_bench(options)
    path = bench.folder / RESULTS
    results = json.loads(path.read_text()) if path.is_file() else {"students": []}
    if not results["students"]:
        results = run(bench, watch)
    print(f"\n{tables(results)}\nlook at the pictures in {bench.folder}")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    with ending("stochastic_teacher"):
        main(options)
