"""Images a second of the embedded teacher in its precisions, eager and compiled, and their quality.

Every round samples one batch of the same seeds in each way, in turn. fd_cifar10 is that of all
images of a way; it depends on their number, so compare within a table only. "Largest change" is
that of a pixel in [-1, 1] from float32: where a bfloat16 network tips the ODE another way, an image
ends elsewhere.

Letters: B samples.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from deqgen.data import noise_for
from deqgen.evaluation import evaluate
from deqgen.teachers import Teacher, load_teacher

BATCH = 64
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "float32, compiled": {"precision": "float32", "compile": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}


def teacher_rates(rounds: int) -> list[dict[str, Any]]:
    """Measure all ways on the same seeds."""
    # Each has a network of its own, as the compiler may change what it is given.
    teachers = {name: load_teacher("cifar10-small", **options) for name, options in WAYS.items()}
    return rates(teachers, rounds)


def rates(teachers: dict[str, Teacher], rounds: int) -> list[dict[str, Any]]:
    """A row for each teacher, beside the first."""
    seconds = dict.fromkeys(teachers, 0.0)
    images: dict[str, list[Tensor]] = {name: [] for name in teachers}
    for turn in range(-1, rounds):  # one to compile and warm up, of the same shape
        for name, teacher in teachers.items():
            start = time.perf_counter()
            made = batch(teacher, max(turn, 0))
            if turn >= 0:
                seconds[name] += time.perf_counter() - start
                images[name].append(made)
    whole = {name: torch.cat(parts) for name, parts in images.items()}
    count = rounds * BATCH
    labels = torch.arange(count) % 10
    first = next(iter(teachers))
    plain = evaluate(whole[first], labels)
    rows = []
    for name, teacher in teachers.items():
        report = evaluate(whole[name], labels)
        rows.append(
            {
                "network": name,
                "NFE": teacher.nfe,
                "images/s": count / seconds[name],
                "x float32": seconds[first] / seconds[name],
                "images": count,
                "fd_cifar10": report.fd_cifar10,
                "its change": report.fd_cifar10 - plain.fd_cifar10,
                "largest change": float((whole[name] - whole[first]).abs().max()),
                "median change": float((whole[name] - whole[first]).abs().median()),
            }
        )
    return rows


def batch(teacher: Teacher, turn: int) -> Tensor:
    """Images (B, 3, 32, 32) of the seeds of a round, classes in turn."""
    seeds = range(turn * BATCH, (turn + 1) * BATCH)
    labels = torch.tensor([seed % 10 for seed in seeds])
    return teacher.sample(noise_for(seeds, teacher.image_shape), labels)
