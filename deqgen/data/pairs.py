"""Write noise/image pairs: ask the teacher once, keep the answers for good.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from deqgen.data.folder import PairFolder
from deqgen.data.images import to_uint8
from deqgen.data.manifest import Manifest, PairError
from deqgen.data.noise import generators_for, noise_for, pair_seeds
from deqgen.data.shards import TORCH_DTYPES
from deqgen.processes import place
from deqgen.teachers.names import unknown

IMAGE_DTYPES = {"uint8": "U8", "float16": "F16", "float32": "F32"}
LABELS = ("uniform", "random", "none")


class PairSource(Protocol):
    """What :func:`write_pairs` needs of a teacher; :class:`deqgen.teachers.Teacher` has it.

    One with an attribute ``stochastic`` that is true is also given the samples' ``generators``,
    which have drawn the noise (and the label, if it is random) and go on from there.
    """

    @property
    def nfe(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...

    def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor: ...

    def describe(self) -> dict[str, Any]: ...


def write_pairs(
    teacher: PairSource,
    directory: str | Path,
    *,
    count: int,
    seed: int = 0,
    batch_size: int = 256,
    shard_size: int = 4096,
    image_dtype: str = "uint8",
    labels: str = "uniform",
    rank: int | None = None,
    world: int | None = None,
    progress: bool = False,
) -> Manifest:
    """Write ``count`` pairs, or whatever part of them is still missing.

    Pair ``index`` is a function of ``(seed, index)``; batches, shards and processes change an image
    by the network's rounding at most. A kill loses the shard in progress; the same call goes on.

    Under ``torchrun`` every process makes the same call and writes its own shards; they need not
    meet. If one alone calls it (``if rank == 0:``), pass ``rank=0, world=1``, or the set that comes
    back is not complete: the other processes' shards are never made.

    Args:
        teacher: what makes the images.
        directory: folder for the manifest and the shards; made if need be.
        count: number of pairs in all, over all processes.
        seed: of the set, 0 to 428.
        batch_size: samples the teacher is given at a time; may change between runs.
        shard_size: pairs a file, held in memory while it is made.
        image_dtype: ``"uint8"``, which keeps [-1, 1]; latents need ``"float16"``, ``"float32"``.
        labels: ``"uniform"``, label = index modulo classes; or ``"random"``, drawn by the pair's
            generator right after its noise (EDM's order). ``"none"`` without classes.
        rank: this process; it owns the shards whose index is ``rank`` modulo ``world``.
        world: processes that write to this folder. Without either, ``RANK`` and ``WORLD_SIZE``
            of the environment (torchrun's), else one process.
        progress: show a progress bar, of rank 0's pairs, in that process alone.

    Returns:
        The manifest; not ``complete`` while other processes owe shards, whether they run or not.

    Raises:
        PairError: another process, a set with other settings or other files in the folder; images
            that are not finite, or beyond what ``image_dtype`` keeps; the disk is full.
        ValueError: an argument out of range; torchrun's environment is half set.
    """
    rank, world = _place(rank, world)
    sizes = {"count": count, "batch_size": batch_size, "shard_size": shard_size, "world": world}
    _check(sizes, rank, image_dtype, labels)
    pair_seeds(seed, [0, count - 1])  # refuse a seed out of range before any work
    planned = plan_pairs(teacher, count, seed, shard_size, image_dtype, labels)
    shards = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
    with PairFolder(directory, planned, [*map(len, shards)], alone=world == 1) as folder:
        mine = {index: shards[index] for index in range(rank, len(shards), world)}
        _fill(folder, mine, teacher, batch_size, show=progress and rank == 0)
        return folder.finish()


def _fill(
    folder: PairFolder, mine: dict[int, range], teacher: PairSource, batch_size: int, show: bool
) -> None:
    """Make those of my shards that are missing."""
    missing = {index: pairs for index, pairs in mine.items() if not folder.has(index)}
    total, left = (sum(map(len, shards.values())) for shards in (mine, missing))
    with tqdm(
        total=total, initial=total - left, unit="pair", disable=not show, desc="pairs"
    ) as bar:
        room = _room(folder.planned, max(map(len, missing.values()), default=0))
        for index, pairs in missing.items():
            folder.store(index, _make(teacher, folder.planned, pairs, batch_size, room, bar))


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    """This process and their number: as given, else as torchrun says, else alone."""
    if rank is None and world is None:
        return place()
    return rank or 0, 1 if world is None else world


def _check(sizes: dict[str, int], rank: int, image_dtype: str, labels: str) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= rank < sizes["world"]:
        raise ValueError(f"rank must lie in 0..{sizes['world'] - 1}, got {rank}")
    if image_dtype not in IMAGE_DTYPES:
        raise ValueError(unknown("image_dtype", image_dtype, IMAGE_DTYPES))
    if labels not in LABELS:
        raise ValueError(unknown("label policy", labels, LABELS))


def plan_pairs(
    teacher: PairSource, count: int, seed: int, shard_size: int, image_dtype: str, labels: str
) -> Manifest:
    """The manifest before its first shard."""
    if teacher.num_classes and labels == "none":
        raise ValueError(
            'labels="none" needs an unconditional teacher: use teacher.unconditional()'
        )
    policy = labels if teacher.num_classes else "none"
    shape = list(teacher.image_shape)
    tensors: dict[str, dict[str, Any]] = {
        "noise": {"dtype": "F16", "shape": shape},
        "image": {"dtype": IMAGE_DTYPES[image_dtype], "shape": shape},
        "seed": {"dtype": "I64", "shape": []},
    }
    if policy != "none":
        tensors["label"] = {"dtype": "I64", "shape": []}
    settings = {
        "teacher": {**teacher.describe(), "nfe": teacher.nfe, "num_classes": teacher.num_classes},
        "count": count,
        "seed": seed,
        "seed_rule": "(seed + 1) * 10000000 + index",
        "noise": "torch.randn of a CPU generator with the pair's seed, rounded to float16",
        "labels": policy,
        "image_dtype": image_dtype,
        "image_range": "byte / 127.5 - 1" if image_dtype == "uint8" else "as given by the teacher",
        "shard_size": shard_size,
    }
    # Through JSON and back, so that it compares equal with what is read from a file.
    return Manifest(settings=json.loads(json.dumps(settings)), tensors=tensors)


def _room(planned: Manifest, size: int) -> dict[str, Tensor]:
    """Memory for the largest shard, used for all: new pages for each cost more than the copies."""
    return {
        name: torch.empty((size, *row["shape"]), dtype=TORCH_DTYPES[row["dtype"]])
        for name, row in planned.tensors.items()
    }


def _make(
    teacher: PairSource,
    planned: Manifest,
    indices: range,
    batch_size: int,
    room: dict[str, Tensor],
    bar: Any,
) -> dict[str, Tensor]:
    """The tensors of one shard, filled batch by batch."""
    made = {name: tensor[: len(indices)] for name, tensor in room.items()}
    for first in range(0, len(indices), batch_size):
        batch = indices[first : first + batch_size]
        for name, rows in _batch(teacher, planned, batch).items():
            made[name][first : first + len(batch)] = rows
        bar.update(len(batch))
    return made


def _batch(teacher: PairSource, planned: Manifest, indices: range) -> dict[str, Tensor]:
    settings = planned.settings
    seeds = pair_seeds(settings["seed"], indices)
    generators = generators_for(seeds)
    noise = noise_for(generators, teacher.image_shape)  # (B, C, H, W)
    label = _labels(settings["labels"], teacher.num_classes, indices, generators)  # (B,) or None
    sample: Any = teacher.sample
    more = {"generators": generators} if getattr(teacher, "stochastic", False) else {}
    image: Tensor = sample(noise, label, **more).cpu()  # (B, C, H, W)
    if image.shape != noise.shape:
        raise PairError(f"the teacher gave images {tuple(image.shape)} for {tuple(noise.shape)}")
    check_numbers(image, settings["image_dtype"], indices, "the teacher's")
    pair = {
        "noise": noise,
        "image": to_uint8(image) if settings["image_dtype"] == "uint8" else image,
        "seed": torch.tensor(seeds, dtype=torch.int64),
    }
    return pair if label is None else {**pair, "label": label}


def check_numbers(image: Tensor, image_dtype: str, pairs: range, source: str) -> None:
    """Refuse images that are not finite, and for bytes those that are no images.

    Bytes clip at [-1, 1]. A diffusion teacher oversteps that by a few hundredths, and a strongly
    guided one by more at some places; but 2 would be a grey of 382 of 255. Where three numbers in a
    hundred lie beyond it, these are latents (4.6 of a normal distribution do), images in 0..255, or
    what a sampler leaves after three steps, and clipping destroys them.

    Args:
        image: ``(B, C, H, W)``.
        image_dtype: in which they are to be stored.
        pairs: their B indices, for the message.
        source: whose images they are, for the message.

    Raises:
        PairError: saying which of the two.
    """
    low, high = image.aminmax()  # NaN if there is one; far cheaper than to ask every number
    if not (low.isfinite() and high.isfinite()):
        bad = pairs[int(image.flatten(1).isfinite().all(1).logical_not().nonzero()[0, 0])]
        raise PairError(f"{source} image of pair {bad} is not finite")
    beyond = (image.abs() > 2).double().mean() if max(-low, high) > 2 else 0.0
    if image_dtype == "uint8" and beyond > 0.03:
        raise PairError(
            f"{source} images lie in {low:.4g}..{high:.4g}, and bytes keep -1..1 alone: latents "
            'need image_dtype="float16" or "float32", and images a sampler of more steps'
        )


def _labels(
    policy: str, classes: int, indices: range, generators: list[torch.Generator]
) -> Tensor | None:
    if policy == "none":
        return None
    if policy == "uniform":
        return torch.tensor([index % classes for index in indices], dtype=torch.int64)
    return torch.stack([torch.randint(classes, (), generator=g) for g in generators])  # (B,)
