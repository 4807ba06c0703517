"""Train the small CIFAR-10 teacher: a class-conditional EDM denoiser for a CPU.

    python examples/train_teacher.py --data cifar10-train.zip --images 4_000_000

With --model GET-N/4, DEQ-UNet-T or another name of these families, the diffusion model is itself an
equilibrium: every denoising solves for a fixed point.

It writes checkpoints and stats.jsonl as it goes and teacher.safetensors at the end; load that with
``load_teacher("runs/teacher/teacher.safetensors")``. Two cores with fast bfloat16 see some 200
images a second of the UNet. Interrupt it whenever you like: the same command continues, and a
larger --images lengthens a finished run. ``examples/measure_teacher.py`` chooses the guidance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
import tyro
from torch import nn

from deqgen.data import ImageZip
from deqgen.evaluation import CIFAR10_CLASSES
from deqgen.models import DEQUNet, ModelDenoiser, create_model, list_models
from deqgen.teachers import Guidance, Sampler, load_teacher, save_teacher
from deqgen.teachers.edm import EDMDenoiser
from deqgen.teachers.teacher import describe_denoiser
from deqgen.teachers.unet import UNet, UNetConfig
from deqgen.training import Denoising, TrainConfig, train
from deqgen.training.run_folder import claim_folder
from distillation.ending import ending


@dataclass(frozen=True)
class Options:
    """Settings of one run.

    --images, --threads, --compile, --device and what the teacher's file names as its defaults
    (--guidance, --interval, --sampler, --steps) may change later; nothing else.
    """

    data: Path
    """EDM-style zip of 32x32 training images with labels."""
    model: str = "UNet"
    """UNet, the network of the embedded teacher, or a GET or DEQ-UNet, such as DEQ-UNet-T."""
    output_dir: Path = Path("runs/teacher")
    """Where checkpoints, statistics and teacher go."""
    images: int = 4_000_000
    """Length of the run, in images; 50,000 are one pass over CIFAR-10."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 1.2e-3
    """Peak rate; from 400,000 images on it falls with the inverse square root of the images."""
    label_dropout: float = 0.1
    """Share of the images shown without their class; classifier-free guidance needs it."""
    guidance: float = 5.0
    """Guidance scale that the teacher's file names as its default; 1 is none."""
    interval: tuple[float, float] = (0.25, 6.0)
    """Noise levels between which it guides."""
    sampler: str = "dpmpp-2m"
    """Method that the file names as its default: dpmpp-2m, heun or euler."""
    steps: int = 12
    """Steps of that sampler."""
    precision: str = "bfloat16"
    """bfloat16 or float32, of the matrix products."""
    compile: bool = True
    """Compile the network, of a DEQ-UNet the cell; needs a C++ compiler on a CPU."""
    seed: int = 0
    """Of the initial weights, the order and the noise."""
    threads: int = 0
    """Threads of torch; 0 leaves its own choice."""
    device: str = "cpu"
    """cpu or cuda."""
    init: str | None = None
    """Name or file of a teacher of this model whose weights the run starts from."""


def new_denoiser(name: str, seed: int) -> EDMDenoiser | ModelDenoiser:
    """A new network; the same weights for the same seed, whatever was drawn before."""
    if name == "UNet":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return EDMDenoiser(UNet(UNetConfig()))
    if name in list_models("ViT*"):
        raise ValueError(f"--model must be UNet, a GET or a DEQ-UNet, and {name} is none of them")
    generator = torch.Generator().manual_seed(seed)
    classes = len(CIFAR10_CLASSES)
    return ModelDenoiser(
        create_model(name, num_classes=classes, noise_level=True, generator=generator)
    )


def build(options: Options) -> EDMDenoiser | ModelDenoiser:
    """The network that the run starts from."""
    model = new_denoiser(options.model, options.seed)
    if options.init is not None:
        start = load_teacher(options.init).denoiser
        if describe_denoiser(start) != describe_denoiser(model):
            raise ValueError(f"--init {options.init} is a teacher of another model")
        model.load_state_dict(cast(nn.Module, start).state_dict())
    return model


def recipe(options: Options) -> TrainConfig:
    return TrainConfig(
        images=options.images,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        betas=(0.9, 0.99),
        warmup_images=20_000,
        decay="inverse-sqrt",
        reference_images=400_000,
        clip_norm=1.0,
        ema_half_life=500_000,
        ema_ramp=0.05,
        precision=options.precision,
        compile=options.compile,
        save_images=25_600,
        log_images=12_800,
        seed=options.seed,
    )


def compile_cell(model: nn.Module, config: TrainConfig) -> TrainConfig:
    """Compile the cell of a DEQ-UNet here, and leave anything else to the trainer."""
    if not (isinstance(model, ModelDenoiser) and isinstance(model.network, DEQUNet)):
        return config
    # Its solver looks at residuals and so runs outside any graph: the cell is what can be compiled.
    model.network.cell.compile()
    return replace(config, compile=False)


def main(options: Options) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    config = recipe(options)
    sampler = Sampler(method=options.sampler, steps=options.steps)
    guidance = Guidance(scale=options.guidance, interval=options.interval)
    device = torch.device(options.device)
    torch.empty(0, device=device)  # refuse a device that is not there before reading the data
    data = ImageZip(options.data)
    if data.images.shape[1:] != (3, 32, 32):
        shape = tuple(data.images.shape[1:])
        raise ValueError(f"the images of {options.data} have shape {shape}, not (3, 32, 32)")
    model = build(options).to(device, memory_format=torch.channels_last)
    free = {"images", "threads", "compile", "device", "output_dir"}
    free |= {"guidance", "interval", "sampler", "steps"}  # for the file at the end
    settings = {k: v for k, v in asdict(options).items() if k not in free}
    claim_folder(options.output_dir, {**settings, "data": options.data.name})
    config = compile_cell(model, config) if config.compile else config
    objective = Denoising(
        data.images,
        data.labels,
        num_classes=len(CIFAR10_CLASSES),
        label_dropout=options.label_dropout,
        device=device,
    )
    result = train(model, objective, config, options.output_dir, title="teacher")
    path = options.output_dir / "teacher.safetensors"
    card = {"data": options.data.name, "images_seen": result.images, "init": options.init}
    metadata = {
        "name": "cifar10-small" if options.model == "UNet" else options.model,
        "class_names": CIFAR10_CLASSES,
        "sampler": sampler,
        "guidance": guidance,
        "card": card,
    }
    save_teacher(result.ema, path, metadata)
    print(f"{result.images} images, loss {result.loss:.4f}; the teacher is {path}")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    # PyTorch raises the last two where a device is not there.
    with ending("train_teacher", (ValueError, OSError, RuntimeError, AssertionError)):
        main(options)
