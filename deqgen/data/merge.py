"""Several finished sets of pairs as one, without a byte of them changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deqgen.data.dataset import PairDataset
from deqgen.data.folder import PairFolder
from deqgen.data.manifest import Manifest, PairError, ShardRecord, first_difference
from deqgen.data.shards import check_shard

SHARED = ("teacher", "noise", "labels", "image_dtype", "image_range")
"""Settings that all parts of a set have in common; the others say which pairs a part holds."""
WORDS = "is", "in the other"


def merge_pairs(out: str | Path, directories: Sequence[str | Path]) -> Manifest:
    """Make one set of several that the same teacher made in the same way.

    They may differ in seed, count and shard size, and be merged sets themselves. The pairs follow
    each other in the order given, and each keeps its seed. Every shard is compared with its
    checksum, then linked into the new folder, or copied where the file system has no links: a
    linked shard is one file in two folders, which is safe, since nothing here ever changes a shard
    in place. A merge that was interrupted goes on where it was.

    Args:
        out: the new folder.
        directories: of finished sets, on this machine.

    Returns:
        The manifest of the new set; its settings hold those of the parts under ``"merged"``.

    Raises:
        PairError: sets of different kinds (the message names the first difference), a seed that
            occurs twice, a damaged shard, a folder that is not finished, or the disk is full.
    """
    if not directories:
        raise ValueError("there is nothing to merge: name at least one folder")
    parts = [PairDataset(Path(directory)) for directory in directories]
    for part in parts[1:]:
        _check_alike(parts[0], part)
    _check_seeds(parts)
    pieces = list(_pieces(parts))
    with PairFolder(out, _plan(parts), [record.count for _, record in pieces]) as folder:
        for index, (part, record) in enumerate(pieces):
            if not folder.has(index):
                source = Path(part.directory) / record.file
                check_shard(source, record, str(part.directory))
                folder.adopt(index, source, record)
        return folder.finish()


def _pieces(parts: Sequence[PairDataset]) -> Iterator[tuple[PairDataset, ShardRecord]]:
    for part in parts:
        for record in part.manifest.shards:
            yield part, record


def _shared(part: PairDataset) -> dict[str, Any]:
    settings = part.manifest.settings
    return {**{key: settings.get(key) for key in SHARED}, "tensors": part.manifest.tensors}


def _check_alike(first: PairDataset, other: PairDataset) -> None:
    difference = first_difference(_shared(first), _shared(other), words=WORDS)
    if difference:
        raise PairError(f"{first.directory} and {other.directory} cannot be one set: {difference}")


def _check_seeds(parts: Sequence[PairDataset]) -> None:
    """Refuse pairs that are there twice."""
    seeds = np.concatenate([part.seeds().numpy() for part in parts])  # (N,)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # (N,)
    order = np.argsort(seeds, kind="stable")
    twice = np.flatnonzero(seeds[order][1:] == seeds[order][:-1])
    if len(twice):
        one, two = (parts[owner[order[twice[0] + step]]].directory for step in (0, 1))
        raise PairError(
            f"the seed {seeds[order[twice[0]]]} occurs twice, in {one} and in {two} "
            f"({len(twice)} such pairs in all); merge sets of different seeds"
        )


def _plan(parts: Sequence[PairDataset]) -> Manifest:
    """The manifest before its first shard."""
    first = parts[0].manifest
    settings = {key: first.settings[key] for key in SHARED}
    settings["count"] = sum(len(part) for part in parts)
    settings["merged"] = [origin for part in parts for origin in _origins(part.manifest)]
    return replace(first, settings=settings, shards=())


def _origins(manifest: Manifest) -> list[dict[str, Any]]:
    """The settings of a set beyond the shared ones; of each part, if it was merged itself."""
    if "merged" in manifest.settings:
        return list(manifest.settings["merged"])
    return [{key: value for key, value in manifest.settings.items() if key not in SHARED}]
