"""Distil a CIFAR-10 diffusion teacher into a one-step Generative Equilibrium Transformer.

    python examples/distill_cifar.py                    # the demo: about ten minutes on two cores
    python examples/distill_cifar.py --preset paper --device cuda    # GET-B/2, a million pairs

The teacher turns noise into images in 35 network evaluations or more, once; the GET learns that map
from the noise/image pairs alone and repeats it in one pass (arXiv 2401.08639). A ViT of no smaller
cost learns from the same pairs for as many images, for comparison. Nothing is downloaded: teacher
and measuring network ship with the package.

It writes config.json, pairs/, log.csv, student.safetensors and .json, metrics.json, samples.png and
loss.png into the output folder. Interrupt it whenever you like: the same command continues.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from distill_presets import PRESETS, Preset
from distill_report import print_table, write_log, write_pictures
from torch import Tensor, nn

from deqgen import create_model, evaluation, generate, list_models
from deqgen.data import PairDataset, noise_for, write_pairs
from deqgen.data.manifest import first_difference
from deqgen.models import save_model
from deqgen.models.cost import model_multiply_adds, multiply_adds
from deqgen.models.protocol import GenerativeModel, parameter_count
from deqgen.teachers import Teacher, load_teacher
from deqgen.teachers.names import unknown
from deqgen.training import CheckpointError, Distillation, TrainingDiverged, train
from deqgen.training.run_folder import Stopwatch, claim_folder, write_json

METRICS = "metrics.json"


@dataclass(frozen=True)
class Options:
    """What to run; a run continues only under the options it began with."""

    preset: str = "demo"
    """smoke (a minute, for tests), demo, or paper (GET-B/2 on a million pairs: for a GPU)."""
    output_dir: Path | None = None
    """Where everything goes; runs/distill_cifar-PRESET by default."""
    teacher: str = "cifar10-small"
    """Name of a teacher, or a file that save_teacher wrote."""
    model: str | None = None
    """Name of the student, such as GET-T/2; the preset's by default. The ViT it is compared with is
    the cheapest one that costs no less."""
    conditional: bool = True
    """Whether teacher and students are told the class to show."""
    pairs: str | None = None
    """How many pairs to make, or a folder of pairs made earlier. The default is the preset's
    number, but no more than --images will use."""
    images: int | None = None
    """Length of the training, in images; the preset's by default."""
    seed: int = 0
    """Of the pairs, the initial weights and the training."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""


@dataclass(frozen=True)
class Job:
    """The options with every blank filled in."""

    preset: Preset
    directory: Path
    teacher: Teacher
    model: str
    vit: str
    pairs: int | Path
    images: int
    seed: int
    device: torch.device
    precision: str

    @property
    def classes(self) -> int | None:
        return self.teacher.num_classes or None

    def describe(self) -> dict[str, Any]:
        """All that decides the results, for config.json."""
        return {
            "preset": asdict(self.preset),
            "teacher": self.teacher.describe(),
            "model": self.model,
            "vit": self.vit,
            "pairs": self.pairs if isinstance(self.pairs, int) else describe_pairs(self.pairs),
            "images": self.images,
            "seed": self.seed,
            "device": str(self.device),
            "precision": self.precision,
        }

    def labels(self, count: int) -> Tensor | None:
        """Classes in turn, (count,); None if there are none."""
        return torch.arange(count) % self.classes if self.classes else None


def resolve(options: Options) -> Job:
    """Check the options and fill in what they leave to the preset."""
    if options.preset not in PRESETS:
        raise ValueError(unknown("preset", options.preset, PRESETS))
    preset = PRESETS[options.preset]
    device = pick_device(options.device)
    precision = "bfloat16" if has_bfloat16(device) else "float32"
    teacher = load_teacher(options.teacher, device=device, precision=precision)
    check_teacher(teacher)
    model = options.model or preset.get
    images = preset.images if options.images is None else options.images
    if images < 1:
        raise ValueError(f"--images must be at least 1, got {images}")
    return Job(
        preset=preset,
        directory=options.output_dir or Path("runs") / f"distill_cifar-{options.preset}",
        teacher=teacher if options.conditional else teacher.unconditional(),
        model=model,
        vit=pick_vit(model, teacher.image_shape),
        pairs=pick_pairs(options.pairs, preset.pairs, images),
        images=images,
        seed=options.seed,
        device=device,
        precision=precision,
    )


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are fast on the device, and not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    query = getattr(torch.cpu, "get_capabilities", dict)  # older releases do not say
    return any(query().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def check_teacher(teacher: Teacher) -> None:
    """Refuse before any work what could not be measured at the end."""
    if teacher.image_shape != (3, 32, 32) or teacher.num_classes not in (0, 10):
        raise ValueError(
            f"teacher {teacher.name!r} makes images of shape {teacher.image_shape} in "
            f"{teacher.num_classes} classes; this example measures with a CIFAR-10 classifier and "
            "needs (3, 32, 32) and 10 classes, or none"
        )


def pick_vit(name: str, image_shape: Sequence[int]) -> str:
    """Choose the cheapest ViT that costs no less than the model ``name``, or the dearest of all."""
    size = {"channels": image_shape[0], "image_size": image_shape[1]}
    with torch.device("meta"):
        config = create_model(name, **size).config
    if not hasattr(config, "max_steps"):
        raise ValueError(f"--model must be an equilibrium model such as GET-T/2, and {name} is not")
    least = model_multiply_adds(name, **size)
    costs = {vit: model_multiply_adds(vit, **size) for vit in list_models("ViT-*")}
    enough = [vit for vit in costs if costs[vit] >= least] or list(costs)
    return min(enough, key=lambda vit: abs(costs[vit] - least))


def pick_pairs(text: str | None, default: int, images: int) -> int | Path:
    """Turn --pairs into a number of pairs to make, or a folder to read."""
    if text is None:
        return max(2, min(default, images))
    try:
        count = int(text)
    except ValueError:
        return Path(text)
    if count < 2:
        raise ValueError(f"--pairs must be at least 2, or a folder, got {count}")
    return count


def describe_pairs(folder: Path) -> dict[str, str]:
    """The folder with the digest of what is in it: the same path may hold other pairs tomorrow."""
    return {"folder": str(folder.resolve()), "digest": PairDataset(folder).manifest.digest}


def open_pairs(folder: Path, teacher: Teacher) -> PairDataset:
    """Open a folder of pairs that this teacher, with these settings, has made."""
    pairs = PairDataset(folder)
    made_by = pairs.manifest.settings["teacher"]
    difference = first_difference(made_by, json.loads(json.dumps(teacher.describe())), "teacher")
    if difference:
        raise ValueError(
            f"the pairs in {folder} are not this teacher's: {difference}; see --teacher and "
            "--no-conditional"
        )
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
    report = evaluation.evaluate(made["image"], made.get("label"))
    network = cast(nn.Module, job.teacher.denoiser)
    null = torch.zeros(1, dtype=torch.int64)
    each = multiply_adds(network, noise[:1], torch.ones(1), null)
    return {
        "model": job.teacher.name,
        "nfe": job.teacher.nfe,
        "seconds_per_image": seconds,
        "parameters": parameter_count(network),
        "gmacs": job.teacher.nfe * each / 1e9,
        **report.to_dict(),
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
        **evaluation.evaluate(images[:count], job.labels(count)).to_dict(),
    }, held_out


def run(job: Job) -> dict[str, Any]:
    """Pairs, two trainings, measurements, pictures; every stage continues where it stopped."""
    watch = Stopwatch(job.directory)
    with watch.stage("pairs"):
        pairs = get_pairs(job)
    sizes = {"GET": job.model, "ViT": job.vit}
    students: dict[str, GenerativeModel] = {}
    with watch.stage("train"):
        for name, size in sizes.items():
            students[name] = distil(job, name, new_model(job, size), pairs)
            supervised = {k: getattr(m.config, "max_steps", 1) for k, m in students.items()}
            write_log(job.directory, supervised)
    save_model(students["GET"], job.directory / "student.safetensors")
    with watch.stage("evaluate"):
        teacher, target = measure_teacher(job, pairs)
        count = int(teacher["images"])
        measured = {
            name: measure_student(job, sizes[name], model, target, count)
            for name, model in students.items()
        }
    rows = {"teacher": target, **{name: images for name, (_, images) in measured.items()}}
    write_pictures(job.directory / "samples.png", rows, job.teacher.class_names)
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


def main(options: Options) -> None:
    job = resolve(options)
    claim_folder(job.directory, job.describe())
    finished = job.directory / METRICS
    metrics = json.loads(finished.read_text()) if finished.is_file() else run(job)
    print_table(metrics, job.directory)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, CheckpointError, TrainingDiverged) as error:
        sys.exit(f"distill_cifar: {error}")
