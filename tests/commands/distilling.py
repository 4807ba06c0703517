"""Small sets of pairs, and runs of ``deqgen distill`` on them that take a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from deqgen import cli
from deqgen.data import write_pairs
from tests.data.stub import StubTeacher

# 12 steps of 8 images.
SHORT = ["--images", "96", "--batch-size", "8", "--log-images", "16", "--save-images", "32"]


class Toy(StubTeacher):
    """Images of three channels and a chosen size."""

    def __init__(self, side: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.image_shape = (3, side, side)


def toy_pairs(folder: Path, *, side: int = 8, num_classes: int = 3, seed: int = 0) -> Path:
    write_pairs(Toy(side, num_classes), folder, count=24, seed=seed)
    return folder


def distill(pairs: Path, outdir: Path, *more: str) -> int:
    """Exit status of a short run without samples; later options win."""
    options = ["--model", "GET-N/4", *SHORT, "--sample-images", "0", "--outdir", str(outdir)]
    return cli.main(["distill", str(pairs), *options, *more])


def only(outdir: Path) -> Path:
    """The one folder in ``outdir``."""
    (folder,) = outdir.iterdir()
    return folder


def rows(folder: Path) -> list[dict[str, float]]:
    """Statistics without the time."""
    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(folder: Path, name: str = "ema") -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "latest" / f"{name}.safetensors")


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
