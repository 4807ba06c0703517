"""Pairs a second of the writer beyond the teacher, and of its steps alone; 3x32x32.

"Processor" is the time that the process itself computed, which other programs on the same cores
leave as it is; the rest is waiting for the disk, and for them.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqgen.data import noise_for, to_uint8, write_pairs

COUNT, BATCH, SHAPE = 20_480, 256, (3, 32, 32)
BYTES = 3 * 32 * 32 * 3 + 16
"""Of a stored pair: noise in float16, image in bytes, seed and label."""


class Instant:
    """A teacher that has its images ready."""

    nfe, image_shape, num_classes = 0, SHAPE, 10

    def __init__(self) -> None:
        self.image = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Take noise (B, C, H, W) to images of that shape."""
        return self.image[: len(noise)]

    def describe(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {"name": "instant"}


def writer_rates(rounds: int) -> list[dict[str, Any]]:
    """Measure the writer and its steps, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        return rates(programs(Path(folder)), rounds, Path(folder) / "pairs")


def programs(folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by name; each handles COUNT pairs."""
    teacher, content = Instant(), os.urandom(COUNT * BYTES)
    batches = range(0, COUNT, BATCH)

    def write(dtype: str) -> None:
        write_pairs(teacher, folder / "pairs", count=COUNT, batch_size=BATCH, image_dtype=dtype)

    def noise() -> None:
        for start in batches:
            noise_for(range(start, start + BATCH), SHAPE)

    def draw() -> None:
        generator, row = torch.Generator(), torch.empty(SHAPE)
        for seed in range(COUNT):
            row.normal_(generator=generator.manual_seed(seed))

    def disk() -> None:
        with (folder / "file").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    return {
        "write_pairs, uint8": lambda: write("uint8"),
        "write_pairs, float16": lambda: write("float16"),
        "of it: normal numbers": draw,
        "of it: noise_for, with them": noise,
        "of it: to bytes": lambda: [to_uint8(teacher.image) for _ in batches],
        "of it: SHA-256": lambda: sha256(content).hexdigest(),
        "of it: write and fsync": disk,
    }


def rates(
    running: dict[str, Callable[[], object]], rounds: int, made: Path
) -> list[dict[str, Any]]:
    """Median rates of programs that each handle COUNT pairs and may leave a folder ``made``."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    for turn in range(rounds + 1):  # one to warm up
        for name, program in running.items():
            start, computed = time.perf_counter(), time.process_time()
            program()
            spent = time.perf_counter() - start, time.process_time() - computed
            if turn:
                taken[name].append(spent)
            shutil.rmtree(made, ignore_errors=True)
    return [
        {
            "what": name,
            "pairs/s": COUNT / statistics.median(wall for wall, _ in times),
            "pairs/s, processor": COUNT / statistics.median(cpu for _, cpu in times),
            "us a pair, processor": 1e6 * statistics.median(cpu for _, cpu in times) / COUNT,
        }
        for name, times in taken.items()
    ]
