"""Train the small CIFAR-10 classifier whose features measure samples, and its reference.

    python examples/train_classifier.py --train cifar10-train.zip --test cifar10-test.zip

It writes into the output folder ``cifar10_classifier.safetensors`` (half precision),
``cifar10_reference.safetensors`` (mean and covariance of the features on the training images) and
``metrics.json``; the first two are what ``deqgen/assets`` ships. On two cores the default takes
about half an hour. Interrupt it whenever you like: the same command continues.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn

from deqgen.data.images import ImageZip, ImageZipError, to_float
from deqgen.evaluation import (
    CifarClassifier,
    class_accuracy,
    load_classifier,
    make_reference,
    save_reference,
)
from deqgen.evaluation.classifier import IMAGE_SHAPE
from deqgen.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

SAMPLE = 10_000
"""Training images from which the scale of the features and the training accuracy are taken."""


@dataclass(frozen=True)
class Config:
    """Settings of one training run; a run continues only under the settings it began with."""

    train: Path
    """EDM-style zip of the labelled training images."""
    test: Path
    """The same for the test images; used to report accuracy, never to choose anything."""
    output_dir: Path = Path("runs/classifier")
    """Where checkpoints and results go."""
    epochs: int = 15
    """Passes over the training images."""
    batch_size: int = 500
    """Images a step."""
    learning_rate: float = 0.4
    """Peak of the one-cycle schedule."""
    warmup: float = 0.2
    """Share of all steps in which the learning rate rises; it then falls to zero linearly."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on convolutions and head; norms and biases have none."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes; it would flatten the probabilities and pull
    the features of a class into one point, and both are measured with."""
    shift: int = 3
    """Largest random shift of an image, in pixels; borders are mirrored."""
    cutout: int = 8
    """Side of a square that is greyed out in every training image, in pixels; 0 is none."""
    ridge: float = 0.02
    """Added to the variance of each patch direction before whitening. Large enough that the
    first layer does not amplify what JPEG does to colour edges, which is noise."""
    widths: tuple[int, int, int] = (64, 256, 320)
    """Channels of the three pairs of convolutions; the last is the number of features."""
    start_from: Path | None = None
    """Classifier file of an earlier run to begin with, for a second leg. If it is narrower, its
    weights become the first channels and the others keep their random start."""
    seed: int = 0
    """Fixes the initial weights, the order of the images and their augmentation."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice. May change between continuations."""
    checkpoint_every: int = 50
    """Steps between checkpoints; an interrupted run repeats at most this many."""
    images: int | None = None
    """Use only the first so many images of either zip (for a quick trial)."""


def learning_rate(config: Config, progress: float) -> float:
    """One cycle: up to the peak at ``warmup``, down to zero at the end."""
    rise = progress / config.warmup if config.warmup > 0 else math.inf
    return config.learning_rate * min(rise, (1 - progress) / (1 - config.warmup))


def augment(images: Tensor, shift: int, cutout: int, generator: torch.Generator) -> Tensor:
    """Shift each image (B, 3, H, W) by its own few pixels, mirror half, grey out a square."""
    batch, _, height, width = images.shape
    padded = nn.functional.pad(images, [shift] * 4, mode="reflect")
    down, right = torch.randint(0, 2 * shift + 1, (2, batch), generator=generator)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    rows = down[:, None] + torch.arange(height)  # (B, H)
    columns = right[:, None] + torch.arange(width)  # (B, W)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    # Indexing (B, H, W, 3) keeps a pixel's colours together, which is also channels-last.
    moved = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]]  # (B, H, W, 3)
    top, left = torch.randint(0, height - cutout + 1, (2, batch), generator=generator)
    below, beyond = torch.arange(height) - top[:, None], torch.arange(width) - left[:, None]
    in_rows = (below >= 0) & (below < cutout)  # (B, H)
    in_columns = (beyond >= 0) & (beyond < cutout)  # (B, W)
    hidden = in_rows[:, :, None] & in_columns[:, None]  # (B, H, W)
    return moved.masked_fill(hidden[..., None], 0.0).permute(0, 3, 1, 2)


def batches(config: Config, data: ImageZip, start: int, steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Augmented batches from step ``start``; each is a function of (seed, step) alone."""
    per_epoch = len(data.labels) // config.batch_size
    for step in range(start, steps):
        epoch, position = divmod(step, per_epoch)
        order = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        rows = torch.randperm(len(data.labels), generator=order)[position * config.batch_size :]
        rows = rows[: config.batch_size]
        noise = torch.Generator().manual_seed((config.seed + 1) * 100_000_007 + step)
        yield (
            augment(to_float(data.images[rows]), config.shift, config.cutout, noise),
            data.labels[rows],
        )


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.SGD:
    """SGD with Nesterov momentum; the penalty falls on matrices and kernels only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=True)


def train(config: Config, data: ImageZip) -> CifarClassifier:
    """Run (or continue) the schedule and return the trained network, in evaluation mode."""
    torch.manual_seed(config.seed)  # the initial weights are drawn by torch.nn.init
    model = CifarClassifier(config.widths)
    model.set_whitening(to_float(data.images[:5000]), config.ridge)
    if config.start_from is not None:
        begin_with(model, load_classifier(config.start_from))
    optimizer = make_optimizer(config, model)
    per_epoch = len(data.labels) // config.batch_size
    steps = config.epochs * per_epoch
    checkpoint = config.output_dir / "checkpoint.pt"
    start = _load_checkpoint(checkpoint, config, model, optimizer)
    model.train()
    began = time.perf_counter()
    for step, (images, labels) in enumerate(batches(config, data, start, steps), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, (step + 1) / steps)
        with torch.autocast("cpu", torch.bfloat16):
            _, logits = model(images)
        loss = nn.functional.cross_entropy(
            logits.float(), labels, label_smoothing=config.label_smoothing
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        done = step + 1
        if done % 20 == 0 or done == steps:
            speed = (done - start) * config.batch_size / (time.perf_counter() - began)
            correct = (logits.argmax(1) == labels).float().mean()
            print(
                f"step {done}/{steps}  loss {loss.item():.3f}  batch accuracy {correct:.3f}  "
                f"{speed:.0f} images/s",
                flush=True,
            )
        if done % config.checkpoint_every == 0 or done == steps:
            _save_checkpoint(checkpoint, config, model, optimizer, done)
    model.eval()
    return model


@torch.no_grad()
def begin_with(model: CifarClassifier, earlier: CifarClassifier) -> None:
    """Copy the weights of an earlier network into the first channels of one no narrower."""
    weights = earlier.state_dict()
    for name, value in model.state_dict().items():
        corner = tuple(slice(size) for size in weights[name].shape)
        if value[corner].shape != weights[name].shape:
            raise ValueError(f"--start-from is wider than --widths: {name} does not fit")
        value[corner].copy_(weights[name])
    model.feature_scale.fill_(1.0)  # set anew by export, for the new features


def _settings(config: Config) -> dict[str, str]:
    """What a continuation must share with its beginning, as text."""
    free = {"threads", "output_dir", "train", "test", "checkpoint_every"}
    return {k: str(v) for k, v in dataclasses.asdict(config).items() if k not in free}


def check(config: Config, data: ImageZip) -> None:
    """Refuse, in one sentence, settings under which there would be nothing to train."""
    if config.epochs < 1 or config.batch_size < 2 or config.checkpoint_every < 1:
        raise ValueError("epochs and checkpoint-every must be at least 1, batch-size at least 2")
    if len(data.labels) < config.batch_size:
        raise ValueError(
            f"a batch of {config.batch_size} needs more than {len(data.labels)} images"
        )
    if not 0 <= config.shift < 32 or not 0 <= config.cutout <= 32:
        raise ValueError("shift must lie between 0 and 31, cutout between 0 and 32")
    if not 0 <= config.warmup < 1:
        raise ValueError(f"warmup must be at least 0 and below 1, got {config.warmup}")
    if tuple(data.images.shape[1:]) != IMAGE_SHAPE:
        raise ValueError(f"images must be {IMAGE_SHAPE}, got {tuple(data.images.shape[1:])}")
    if int(data.labels.min()) < 0 or int(data.labels.max()) > 9:
        raise ValueError("labels must lie between 0 and 9")


def _save_checkpoint(
    path: Path, config: Config, model: nn.Module, optimizer: torch.optim.SGD, step: int
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    save_checkpoint(path, {**state, "settings": _settings(config)})


def _load_checkpoint(
    path: Path, config: Config, model: nn.Module, optimizer: torch.optim.SGD
) -> int:
    if not path.exists():
        return 0
    state = load_checkpoint(path)
    if state["settings"] != _settings(config):
        raise ValueError(
            f"{config.output_dir} holds a run with other settings; choose another --output-dir"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def accuracy(model: CifarClassifier, data: ImageZip, limit: int | None = None) -> float:
    """Share of the first ``limit`` images whose class the network recognises."""
    batches = torch.split(data.images[:limit], 500)
    logits = torch.cat([model.logits(to_float(images)) for images in batches])
    return class_accuracy(logits, data.labels[:limit])


def export(config: Config, model: CifarClassifier, data: ImageZip) -> CifarClassifier:
    """Write the half-precision classifier and the reference computed with exactly those weights."""
    path = config.output_dir / "cifar10_classifier.safetensors"
    # Features are put on a readable scale: real images have a total variance of about 100, so that
    # a distance of 1 is a hundredth of how much real images differ among themselves.
    unscaled = make_reference(to_float(data.images[:SAMPLE]), "unscaled", classifier=model)
    model.feature_scale.fill_(math.sqrt(100.0 / float(unscaled.covariance.trace())))
    floats = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    weights = {k: v.half().contiguous() for k, v in floats.items()}
    save_file(weights, path, metadata={"format": "pt", "network": "CifarClassifier"})
    shipped = load_classifier(path)
    reference = make_reference(
        to_float(data.images),
        f"{config.train.stem}, {len(data.labels)} images",
        classifier=shipped,
    )
    save_reference(reference, config.output_dir / "cifar10_reference.safetensors")
    return shipped


def read(path: Path, count: int | None) -> ImageZip:
    data = ImageZip(path)
    data.images, data.labels = data.images[:count], data.labels[:count]
    return data


def main(config: Config) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    data, held_out = read(config.train, config.images), read(config.test, config.images)
    check(config, data)
    check(config, held_out)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    trained = train(config, data)
    seconds = time.perf_counter() - began
    shipped = export(config, trained, data)
    metrics = {
        "train_accuracy": accuracy(shipped, data, limit=SAMPLE),
        "test_accuracy": accuracy(shipped, held_out),
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "seconds_of_last_leg": round(seconds, 1),
        "settings": _settings(config),
    }
    (config.output_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ImageZipError, CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")
