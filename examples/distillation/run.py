"""The common flow of a distillation run: see distill_cifar.py and distill_imagenet.py.

Pairs, two trainings, measurements, pictures; every stage continues where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deqgen import create_model, generate
from deqgen.data import PairDataset, noise_for, write_pairs
from deqgen.data.manifest import first_difference
from deqgen.models import save_model
from deqgen.models.cost import model_multiply_adds, multiply_adds
from deqgen.models.protocol import GenerativeModel, parameter_count
from deqgen.teachers import Teacher
from deqgen.training import Distillation, train
from deqgen.training.run_folder import Stopwatch, claim_folder, write_json
from distillation.ending import ending
from distillation.job import Job, Options, Task, resolve
from distillation.report import print_table, write_log, write_pictures

METRICS = "metrics.json"
NOT_RECORDED = "not recorded"  # the teacher's name in a set that import_get made
KEPT = "image_shape", "num_classes"  # of a teacher that is not recorded


def open_pairs(folder: Path, teacher: Teacher) -> PairDataset:
    """Open a folder of pairs that this teacher, with these settings, has made.

    Its precision may have been another. Where a set from elsewhere does not record its teacher, the
    shape of the images and the number of classes are compared.
    """
    pairs = PairDataset(folder)
    made_by = dict(pairs.manifest.settings["teacher"])
    wanted = json.loads(json.dumps(teacher.describe()))
    precision = made_by.pop("precision", None), wanted.pop("precision")
    if made_by["name"] == NOT_RECORDED:
        made_by, wanted = ({key: d[key] for key in KEPT} for d in (made_by, wanted))
        note = f"does not record who made it; {teacher.name} is taken for its teacher"
    elif precision[0] != precision[1]:
        note = f"was made in {precision[0]}, and the teacher is measured in {precision[1]}"
    else:
        note = ""
    if difference := first_difference(made_by, wanted, "teacher"):
        raise ValueError(
            f"the pairs in {folder} are not this teacher's: {difference}; see --teacher and, "
            "for CIFAR-10, --no-conditional"
        )
    if note:
        print(f"note: {folder} {note}", file=sys.stderr)
    return pairs


def get_pairs(job: Job) -> PairDataset:
    """Make the pairs, or open the folder that was named."""
    if isinstance(job.pairs, Path):
        return open_pairs(job.pairs, job.teacher)
    directory = job.directory / "pairs"
    write_pairs(
        job.teacher,
        directory,
        count=job.pairs,
        seed=job.seed,
        batch_size=job.preset.batch,
        shard_size=job.preset.shard,
        image_dtype="float16" if job.latents else "uint8",
        progress=True,
    )
    return PairDataset(directory)


def new_model(job: Job, name: str) -> GenerativeModel:
    channels, height, _ = job.teacher.image_shape
    model = create_model(
        name,
        image_size=height,
        channels=channels,
        num_classes=job.classes,
        generator=torch.Generator().manual_seed(job.seed),
    )
    return model.to(job.device)


def distil(job: Job, name: str, model: GenerativeModel, pairs: PairDataset) -> GenerativeModel:
    """Train, and return the averaged model."""
    objective = Distillation(pairs, conditional=job.classes is not None, device=job.device)
    config = job.preset.training(images=job.images, seed=job.seed, precision=job.precision)
    trained = train(model, objective, config, job.directory / name.lower(), title=name)
    return cast(GenerativeModel, trained.ema)


def measure_teacher(job: Job, pairs: PairDataset) -> tuple[dict[str, Any], Tensor]:
    """Report on the teacher's pairs; also its images for the held-out noise."""
    noise = noise_for(range(min(job.preset.held_out, len(pairs))), job.teacher.image_shape)
    labels = job.labels(len(noise))
    job.teacher.sample(noise[:2], None if labels is None else labels[:2])  # first calls are slow
    start = time.perf_counter()
    held_out = job.teacher.sample(noise, labels).cpu()
    seconds = (time.perf_counter() - start) / len(noise)
    made = pairs.__getitems__(range(min(job.preset.evaluate, len(pairs))))
    job.task.compare_with(made["image"])
    report = job.task.measure(made["image"], made.get("label"))
    network = cast(nn.Module, job.teacher.denoiser)
    label = torch.zeros(1, dtype=torch.int64) if job.classes else None
    inputs = (noise[:1], torch.ones(1), label) if label is not None else (noise[:1], torch.ones(1))
    return {
        "model": job.teacher.name,
        "nfe": job.teacher.nfe,
        "seconds_per_image": seconds,
        "parameters": parameter_count(network),
        "gmacs": job.teacher.nfe * multiply_adds(network, *inputs) / 1e9,
        **report,
    }, held_out


def measure_student(
    job: Job, name: str, model: GenerativeModel, target: Tensor, count: int
) -> tuple[dict[str, Any], Tensor]:
    """Report on ``count`` images of one pass each; also those for the held-out noise.

    The seeds from 0 on are never trained on; the first ones are the held-out noise.
    """
    total = max(count, len(target))
    with torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
        generate(model, range(2), job.labels(2))  # first calls are slow
        start = time.perf_counter()
        images = generate(model, range(total), job.labels(total), batch_size=job.preset.batch)
        seconds = (time.perf_counter() - start) / total
    held_out = images[: len(target)]
    side = {"image_size": model.config.image_size, "channels": model.config.channels}
    return {
        "model": name,
        "nfe": 1,
        "seconds_per_image": seconds,
        "parameters": parameter_count(model),
        "gmacs": model_multiply_adds(name, **side) / 1e9,
        "pair_l1": float((held_out - target).abs().mean()),
        **job.task.measure(images[:count], job.labels(count)),
    }, held_out


def run(job: Job) -> dict[str, Any]:
    """Pairs, two trainings, measurements, pictures; return the metrics."""
    watch = Stopwatch(job.directory)
    with watch.stage("pairs"):
        pairs = get_pairs(job)
    students: dict[str, GenerativeModel] = {}
    with watch.stage("train"):
        for name, size in job.models.items():
            students[name] = distil(job, name, new_model(job, size), pairs)
            supervised = {k: getattr(m.config, "max_steps", 1) for k, m in students.items()}
            write_log(job.directory, supervised)
    save_model(students[job.student], job.directory / "student.safetensors")
    with watch.stage("evaluate"):
        teacher, target = measure_teacher(job, pairs)
        count = int(teacher["images"])
        measured = {
            name: measure_student(job, job.models[name], model, target, count)
            for name, model in students.items()
        }
    rows = {"teacher": target, **{name: images for name, (_, images) in measured.items()}}
    write_pictures(job.directory / "samples.png", rows, job)
    metrics = {
        "teacher": teacher,
        **{name.lower(): report for name, (report, _) in measured.items()},
        "pairs": len(pairs),
        "teacher_nfe_total": pairs.manifest.nfe * len(pairs),
        "training_images": job.images,
        "seconds": {stage: round(seconds, 1) for stage, seconds in watch.seconds.items()},
    }
    write_json(job.directory / METRICS, metrics)
    return metrics


def refuse_several_processes() -> None:
    """They would train the same student into the same files."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ValueError(
            f"this example runs as one process, and WORLD_SIZE is {world}; to make the pairs on "
            "several GPUs, run `torchrun --nproc-per-node N -m deqgen pairs make`, then this with "
            "--pairs FOLDER"
        )


def main(task: Task, options: Options) -> None:
    """Run the task, or show its results if it is done, or end with one sentence."""
    with ending(task.name):
        refuse_several_processes()
        job = resolve(task, options)
        claim_folder(job.directory, job.describe())
        finished = job.directory / METRICS
        metrics = json.loads(finished.read_text()) if finished.is_file() else run(job)
        print_table(metrics, job)
