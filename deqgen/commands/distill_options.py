"""The options of ``deqgen distill``; those of the training itself are TrainConfig's fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

PERCEPTUAL = ("lpips", "dists")


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """The model to train.

    Args:
        model: such as GET-T/2, ViT-B/4 or DEQ-UNet-T; `deqgen list --kind models` lists them. It
            is built for the size of the pairs' images.
        conditional: tell it the class, where the pairs have classes.
        solver: of its equilibrium; the model's own by default.
        gradient: how it differentiates through the equilibrium; the model's own by default.
        max_steps: most evaluations of the equilibrium's cell; the model's own by default.
        checkpoint: evaluate the cell anew in the backward pass: a third more work in place of the
            memory of all steps. For the gradient unrolled, as a GET has it.

    Raises:
        ValueError: ``checkpoint`` with a gradient other than unrolled.
    """

    model: Annotated[str, arg(metavar="NAME")]
    conditional: bool = True
    solver: Annotated[str | None, arg(metavar="NAME")] = None
    gradient: Annotated[str | None, arg(metavar="NAME")] = None
    max_steps: Annotated[int | None, arg(metavar="INT")] = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint and self.gradient not in (None, "unrolled"):
            raise ValueError(
                f"--checkpoint belongs to --gradient unrolled, not to {self.gradient!r}"
            )


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What is minimised.

    Args:
        loss: distance of a state's image to the teacher's. lpips and dists compare features of
            VGG-16, whose weights you have on disk.
        loss_decay: weight of a state relative to the next one; the last one counts 1.
        perceptual_vgg: for lpips and dists: a file of VGG-16's weights, as vgg16-397923af.pth.
        perceptual_heads: for lpips and dists: a file of what was learnt on top; those of an
            installed torchmetrics by default.

    Raises:
        ValueError: a perceptual distance without its weights, or weights without it; a
            ``loss_decay`` outside (0, 1].
    """

    loss: Literal["l1", "l2", "huber", "lpips", "dists"] = "l1"
    loss_decay: float = 0.8
    perceptual_vgg: Annotated[Path | None, arg(metavar="PATH")] = None
    perceptual_heads: Annotated[Path | None, arg(metavar="PATH")] = None

    def __post_init__(self) -> None:
        if not 0 < self.loss_decay <= 1:
            raise ValueError(f"--loss-decay must lie in (0, 1], got {self.loss_decay}")
        paths = {
            "--perceptual-vgg": self.perceptual_vgg,
            "--perceptual-heads": self.perceptual_heads,
        }
        given = [name for name, path in paths.items() if path is not None]
        if self.loss in PERCEPTUAL and self.perceptual_vgg is None:
            raise ValueError(f"--loss {self.loss} needs --perceptual-vgg PATH, weights of VGG-16")
        if given and self.loss not in PERCEPTUAL:
            raise ValueError(f"{given[0]} belongs to --loss lpips or dists, not to {self.loss}")


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """What is looked at on the way, on the averaged weights.

    Args:
        sample_images: training images between two grids of samples of the seeds 0 to 63; 0 for
            none.
        evaluate_images: training images between two evaluations; 0 for none.
        evaluate_count: generated images that an evaluation measures, of the seeds from 0 on.
            Published numbers take 50000.
        evaluate_features: the network that looks at them: a name, path or URL as for `deqgen
            evaluate`.
        evaluate_reference: what they are compared with: a name or path as for `deqgen evaluate`.

    Raises:
        ValueError: a negative interval, or how to evaluate where nothing is evaluated.
    """

    sample_images: int = 100_000
    evaluate_images: int = 0
    evaluate_count: int = 5_000
    evaluate_features: Annotated[str, arg(metavar="NAME|PATH|URL")] = "cifar10"
    evaluate_reference: Annotated[str, arg(metavar="NAME|PATH")] = "cifar10"

    def __post_init__(self) -> None:
        for name in ("sample_images", "evaluate_images"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.evaluate_images:
            return
        for field in fields(self):
            how = field.name in ("evaluate_count", "evaluate_features", "evaluate_reference")
            if how and getattr(self, field.name) != field.default:
                option = f"--{field.name.replace('_', '-')}"
                raise ValueError(
                    f"{option} {getattr(self, field.name)} changes nothing without "
                    "--evaluate-images, the training images between two evaluations"
                )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where it runs and what becomes of it.

    Args:
        outdir: runs get numbered folders in it: 00000-MODEL-PAIRS.
        desc: a few words to end the folder's name with.
        resume: with auto, the newest unfinished run in the outdir that has this very configuration
            goes on, and where there is none a new one begins; with never, a new one begins in any
            case; a path is the folder of the run to go on with.
        dry_run: print the configuration and what would happen; do nothing.
        trackers: tensorboard, wandb.
        device: auto takes the GPU of each process where there is one. CUDA_VISIBLE_DEVICES chooses
            among several.
    """

    outdir: Path = Path("runs")
    desc: str = ""
    resume: Annotated[str, arg(metavar="auto|never|PATH")] = "auto"
    dry_run: bool = False
    trackers: Annotated[tuple[str, ...], arg(metavar="NAME...")] = ()
    device: Literal["auto", "cpu"] = "auto"
