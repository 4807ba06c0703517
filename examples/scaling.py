"""GET against ViT on the embedded teacher: at equal parameters, equal FLOPs, and five times those.

    deqgen pairs make runs/scaling-pairs --teacher cifar10-small --count 81920 \\
        --precision bfloat16 --compile
    python examples/scaling.py --dry-run              # what would be trained, and how long it takes
    OMP_NUM_THREADS=1 python examples/scaling.py      # in a second shell too: they share the work

Each student learns from the first 5,000, 20,000 or 80,000 pairs of one folder and sees the same
number of images, whatever the number of pairs. Its average is measured after 1/8, 1/4, 1/2 and all
of them: fd_cifar10 on seeds that nobody trained on, and the L1 distance to the teacher's images on
pairs at the folder's end that nobody trained on. Trainings are taken in turn by as many processes
as run this command; a stopped one goes on where it was. Written are results.json, pictures,
table.md and claims.md: what the paper says (arXiv 2401.08639), what was found here, and a verdict
by the rules of comparison/rules.py. The report holds what is finished, so far as it goes.

The preset "cpu" trains 22 students for about 4.5 hours of one core in all, with bfloat16 in
hardware; the pairs take 50 minutes more. CPU only: what needs a GPU is reported as untested.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from comparison.plan import CLASSES, GET, PLANS, SHAPE, Plan, training_flops
from comparison.report import write_report
from comparison.runs import Bench
from deqgen.atomic import discard
from deqgen.data import PairDataset
from deqgen.teachers.names import unknown
from deqgen.training.run_folder import RunFolderError, claim_folder, training_in, write_json
from distillation.ending import ending
from distillation.job import describe_pairs, has_bfloat16

RESULT = "result.json"
Work = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """What to run."""

    preset: str = "cpu"
    """cpu (hours), or smoke (seconds, for tests)."""
    pairs: Path = Path("runs/scaling-pairs")
    """Folder of pairs; the preset says how many it needs."""
    output_dir: Path | None = None
    """Where everything goes; runs/scaling-PRESET by default."""
    dry_run: bool = False
    """Print students, trainings and predicted times; do nothing."""
    report: bool = False
    """Train nothing: write the report of what is finished."""


def show(plan: Plan) -> None:
    """Print what would be trained, and how long it should take on one core."""
    parameters, gmacs = plan.students[GET].cost
    print(f"{'student':24s} parameters  x GET    GMACs  x GET")
    for title, student in plan.students.items():
        own, work = student.cost
        print(f"{title:24s} {own:10,d} {own / parameters:6.2f} {work:8.4f} {work / gmacs:6.2f}")
    print(f"\n{'training':24s}   pairs  seed   images  PFLOPs  minutes of one core")
    total = 0.0
    for training in plan.trainings:
        seconds = plan.core_seconds(training)
        flops = training_flops(plan.students[training.student].cost[1], plan.images)
        total += seconds
        print(
            f"{training.student:24s} {training.pairs:7,d} {training.seed:5d} {plan.images:8,d} "
            f"{flops / 1e15:7.3f} {seconds / 60:10.1f}"
        )
    print(f"{len(plan.trainings)} trainings, {total / 3600:.1f} hours of one core")


def open_pairs(folder: Path, plan: Plan) -> PairDataset:
    """Open the folder, or say how to make one that suits."""
    needed = plan.most_pairs + plan.held_out
    how = (
        f"make one with `deqgen pairs make {folder} --teacher cifar10-small --count {needed} "
        "--precision bfloat16 --compile` "
        "or name another with --pairs"
    )
    if not folder.exists():
        raise ValueError(f"there is no folder of pairs at {folder}; {how}")
    pairs = PairDataset(folder)
    if pairs.image_shape != SHAPE or pairs.num_classes != CLASSES:
        raise ValueError(
            f"the pairs in {folder} have images {pairs.image_shape} of {pairs.num_classes} classes "
            f"and must have {SHAPE} of {CLASSES}, for fd_cifar10; {how}"
        )
    if len(pairs) < needed:
        raise ValueError(
            f"{folder} holds {len(pairs)} pairs and {needed} are needed, {plan.held_out} of them "
            f"to measure with; {how}"
        )
    return pairs


def work_through(folder: Path, jobs: dict[str, Work]) -> list[str]:
    """Do all jobs that nobody has done or is at; return those that others are at."""
    busy = []
    for name, work in jobs.items():
        place = folder / "runs" / name
        if (place / RESULT).is_file():
            continue
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(training_in(place))
            except RunFolderError:
                busy.append(name)
                continue
            if not (place / RESULT).is_file():  # another process may have finished it by now
                write_json(place / RESULT, work(place))
                if (checkpoints := place / "checkpoints").is_dir():
                    discard(checkpoints)  # student.safetensors is left
    return busy


def finished(folder: Path, jobs: dict[str, Work]) -> dict[str, Any]:
    """Results by the name of the job."""
    files = {name: folder / "runs" / name / RESULT for name in jobs}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def main(options: Options) -> None:
    if options.preset not in PLANS:
        raise ValueError(unknown("preset", options.preset, PLANS))
    plan = PLANS[options.preset]
    if options.dry_run:
        show(plan)
        return
    folder = options.output_dir or Path("runs") / f"scaling-{options.preset}"
    pairs = open_pairs(options.pairs, plan)
    precision = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    made = describe_pairs(options.pairs)
    claim_folder(folder, {"plan": plan.describe(), "precision": precision, "pairs": made["digest"]})
    bench = Bench(plan, pairs, precision)
    jobs: dict[str, Work] = {
        "teacher": lambda _: bench.teacher(),
        "costs": lambda _: bench.costs(),
        **{t.name: lambda place, t=t: bench.train(t, place) for t in plan.trainings},
    }
    busy = [] if options.report else work_through(folder, jobs)
    done = finished(folder, jobs)
    print(write_report(folder, plan, done, pairs.manifest))
    if busy:
        print(f"\nother processes are at {', '.join(busy)}; the last to end completes the report")
    elif left := len(jobs) - len(done):
        print(f"\n{left} of {len(jobs)} parts are not done yet; the same command goes on")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    with ending("scaling"):
        main(options)
