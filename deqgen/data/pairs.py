"""Write noise/image pairs: ask the teacher once, keep the answers for good.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from deqgen.atomic import tidy
from deqgen.data.images import to_uint8
from deqgen.data.manifest import (
    MANIFEST,
    Manifest,
    PairError,
    ShardRecord,
    first_difference,
    write_atomically,
)
from deqgen.data.noise import generators_for, noise_for, pair_seeds
from deqgen.data.shards import shard_bytes, shard_file
from deqgen.teachers.names import unknown

IMAGE_DTYPES = {"uint8": "U8", "float16": "F16"}
LABELS = ("uniform", "random", "none")


class PairSource(Protocol):
    """What :func:`write_pairs` needs of a teacher; :class:`deqgen.teachers.Teacher` has it."""

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
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> Manifest:
    """Write ``count`` pairs, or whatever part of them is still missing.

    Pair ``index`` is a function of ``(seed, index)`` alone: its seed is ``pair_seeds(seed,
    [index])``, the seed's generator draws the noise, the noise is rounded to float16, and what is
    stored is what the teacher saw. ``batch_size``, ``shard_size`` and ``world`` change an image by
    the rounding of the network at most. A kill at any instant loses the shard in progress and
    nothing else; the same call goes on from there.

    Args:
        teacher: what makes the images.
        directory: folder for the manifest and the shards; made if need be.
        count: number of pairs in all, over all processes.
        seed: of the set, 0 to 428.
        batch_size: samples the teacher is given at a time; may change between runs.
        shard_size: pairs a file, held in memory while it is made.
        image_dtype: ``"uint8"``, or ``"float16"``, which takes twice the space and keeps what the
            teacher computed beyond 8 bits.
        labels: ``"uniform"``, label = index modulo classes, so that every class has equally many
            pairs and none of a class's share is left to chance (recommended); or ``"random"``,
            drawn by the sample's own generator right after its noise, in EDM's order. Recorded as
            ``"none"`` for an unconditional teacher.
        rank: this process; it owns the shards whose index is ``rank`` modulo ``world``.
        world: number of processes writing to this folder.
        progress: show a progress bar.

    Returns:
        The manifest; ``complete`` is false only while other processes still owe shards.

    Raises:
        PairError: the folder holds a set with other settings (the message names the first), or
            other files; the teacher gave an image that is not finite; the disk is full.
        ValueError: an argument out of range.
    """
    _check(count, batch_size, shard_size, image_dtype, labels, rank, world)
    pair_seeds(seed, [0, count - 1])  # refuse a seed out of range before any work
    directory = Path(directory)
    planned = _plan(teacher, count, seed, shard_size, image_dtype, labels)
    if world == 1:  # with others about, a partial manifest may be one that is being written
        tidy(directory / MANIFEST)
    _begin(directory, planned)
    shards = range(-(-count // shard_size))
    with tqdm(total=count, unit="pair", disable=not progress, desc="pairs") as bar:
        for index in shards:
            start = index * shard_size
            size = min(shard_size, count - start)
            if index % world == rank and not _exists(directory, index, planned):
                tidy(directory / shard_file(index), _record_path(directory, index))
                tensors = _make(teacher, planned, start, size, batch_size, bar)
                _store(directory, index, start, tensors, planned)
            elif index % world == rank:
                bar.update(size)
    return _finish(directory, planned, shards)


def _check(
    count: int,
    batch_size: int,
    shard_size: int,
    image_dtype: str,
    labels: str,
    rank: int,
    world: int,
) -> None:
    sizes = {"count": count, "batch_size": batch_size, "shard_size": shard_size, "world": world}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
    if image_dtype not in IMAGE_DTYPES:
        raise ValueError(unknown("image_dtype", image_dtype, IMAGE_DTYPES))
    if labels not in LABELS:
        raise ValueError(unknown("label policy", labels, LABELS))


def _plan(
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


def _begin(directory: Path, planned: Manifest) -> None:
    """Claim the folder, or check that it was begun with the same settings."""
    try:
        (directory / "shards").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PairError(f"could not make the folder {directory}: {error.strerror}") from error
    # Listed before the look for the manifest: another process that begins at this moment writes its
    # manifest first, so what is listed here without one is not ours.
    others = {path.name for path in directory.iterdir() if not path.name.endswith(".tmp")}
    others |= {path.name for path in (directory / "shards").glob("*.safetensors")}
    if not (directory / MANIFEST).exists():
        if others - {"shards"}:
            raise PairError(
                f"{directory} is not empty and holds no {MANIFEST}; choose a new folder"
            )
        planned.write(directory)
        return
    found = Manifest.read(directory)
    difference = first_difference(found.settings, planned.settings)
    if difference:
        raise PairError(
            f"{directory} holds pairs made with other settings: {difference}; "
            "use the same settings to go on, or another folder"
        )


def _make(
    teacher: PairSource, planned: Manifest, start: int, size: int, batch_size: int, bar: Any
) -> dict[str, Tensor]:
    """The tensors of one shard."""
    batches = [
        _batch(teacher, planned, range(first, min(first + batch_size, start + size)), bar)
        for first in range(start, start + size, batch_size)
    ]
    return {name: torch.cat([batch[name] for batch in batches]) for name in planned.tensors}


def _batch(teacher: PairSource, planned: Manifest, indices: range, bar: Any) -> dict[str, Tensor]:
    settings = planned.settings
    seeds = pair_seeds(settings["seed"], indices)
    generators = generators_for(seeds)
    noise = noise_for(generators, teacher.image_shape)  # (B, C, H, W)
    label = _labels(settings["labels"], teacher.num_classes, indices, generators)  # (B,) or None
    image = teacher.sample(noise, label).cpu()  # (B, C, H, W)
    if image.shape != noise.shape:
        raise PairError(f"the teacher gave images {tuple(image.shape)} for {tuple(noise.shape)}")
    if not image.isfinite().all():
        bad = indices[int(image.flatten(1).isfinite().all(1).logical_not().nonzero()[0, 0])]
        raise PairError(f"the teacher's image of pair {bad} is not finite")
    bar.update(len(indices))
    pair = {
        "noise": noise.half(),
        "image": to_uint8(image) if settings["image_dtype"] == "uint8" else image.half(),
        "seed": torch.tensor(seeds, dtype=torch.int64),
    }
    return pair if label is None else {**pair, "label": label}


def _labels(
    policy: str, classes: int, indices: range, generators: list[torch.Generator]
) -> Tensor | None:
    if policy == "none":
        return None
    if policy == "uniform":
        return torch.tensor([index % classes for index in indices], dtype=torch.int64)
    return torch.stack([torch.randint(classes, (), generator=g) for g in generators])  # (B,)


def _store(
    directory: Path, index: int, start: int, tensors: dict[str, Tensor], planned: Manifest
) -> None:
    """Write the record, then the shard: so a shard that exists always has its record."""
    data = shard_bytes(tensors, {"start": start, "settings": planned.digest})
    record = ShardRecord(
        file=shard_file(index),
        start=start,
        count=len(tensors["seed"]),
        size=len(data),
        sha256=sha256(data).hexdigest(),
        settings=planned.digest,
    )
    text = json.dumps(asdict(record), indent=2) + "\n"
    write_atomically(_record_path(directory, index), text.encode())
    write_atomically(directory / record.file, data)


def _record_path(directory: Path, index: int) -> Path:
    return (directory / shard_file(index)).with_suffix(".json")


def _exists(directory: Path, index: int, planned: Manifest) -> bool:
    """Whether a shard is done: it is there, as long as its record says, and made as planned."""
    path, record_path = directory / shard_file(index), _record_path(directory, index)
    if not (path.is_file() and record_path.is_file()):
        return False
    record = _read_record(record_path)
    if record is not None and record.settings != planned.digest:
        raise PairError(f"shard {record.file} in {directory} was made with other settings")
    return record is not None and path.stat().st_size == record.size


def _read_record(path: Path) -> ShardRecord | None:
    """The record, or None if it is damaged: the shard is then made again, with the same pairs."""
    try:
        return ShardRecord.from_dict(json.loads(path.read_text()), path)
    except (ValueError, TypeError, OSError):
        return None


def _finish(directory: Path, planned: Manifest, shards: range) -> Manifest:
    """List all shards in the manifest if they are all there; the last process to end does it."""
    records = tuple(_finished(directory, shards, planned))
    if len(records) < len(shards):
        return planned
    whole = Manifest(settings=planned.settings, tensors=planned.tensors, shards=records)
    whole.write(directory)
    return whole


def _finished(directory: Path, shards: range, planned: Manifest) -> Iterator[ShardRecord]:
    for index in shards:
        if _exists(directory, index, planned):
            record = _read_record(_record_path(directory, index))
            if record is not None:
                yield record
