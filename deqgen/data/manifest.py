"""The record beside a folder of pairs: how they were made, what they cost, whether they are whole.

A folder of pairs looks like this::

    manifest.json                      settings, cost, tensors; at the end all shards' checksums
    shards/pairs-000000.safetensors    noise, image, label, seed
    shards/pairs-000000.json           the record of that shard, written just before it appears

The manifest is written twice: with the settings before the first shard, and with the records of all
shards after the last. It holds no date and no machine, so that an interrupted run and an
undisturbed one end in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from deqgen.atomic import replacing

FORMAT = "deqgen-pairs"
VERSION = 1
MANIFEST = "manifest.json"


class PairError(ValueError):
    """A folder of pairs cannot be written or read; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard: its file below the folder, first index, number of pairs, bytes and checksum.

    ``settings`` is the digest of the settings it was made with, so that shards of two runs are
    never taken for one set.
    """

    file: str
    start: int
    count: int
    size: int
    sha256: str
    settings: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: Path) -> ShardRecord:
        """Read a record, or raise PairError naming ``source``."""
        try:
            record = cls(**data)
        except TypeError:
            raise PairError(f"{source} holds a shard record that is not readable") from None
        kinds = {"file": str, "start": int, "count": int, "size": int, "sha256": str}
        if any(not isinstance(getattr(record, key), kind) for key, kind in kinds.items()):
            raise PairError(f"{source} holds a shard record that is not readable")
        if Path(record.file).is_absolute() or ".." in Path(record.file).parts:
            raise PairError(f"{source} names a shard outside its folder: {record.file}")
        return record


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is known about a folder of pairs.

    Args:
        settings: what decides the pairs (teacher, seed, count, labels, ...); JSON data. A run
            resumes only with equal settings.
        tensors: dtype and shape of one row of every stored tensor, in safetensors' words.
        shards: records of all shards once the set is complete, else empty.
    """

    settings: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    shards: tuple[ShardRecord, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether all pairs are there."""
        return sum(shard.count for shard in self.shards) == self.count

    @property
    def count(self) -> int:
        """Number of pairs, once complete."""
        return int(self.settings["count"])

    @property
    def nfe(self) -> int:
        """Network evaluations of the teacher for one pair."""
        return int(self.settings["teacher"]["nfe"])

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write ``manifest.json`` so that it is either the old one or the new one, never half."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "nfe_per_pair": self.nfe,
            "nfe_total": self.nfe * self.count,
            "tensors": self.tensors,
            "complete": self.complete,
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_atomically(directory / MANIFEST, (json.dumps(data, indent=2) + "\n").encode())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            PairError: there is none, it is damaged, or another release wrote it.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise PairError(f"{directory} holds no pairs: there is no {MANIFEST} in it")
        try:
            data = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise PairError(f"{path} is damaged: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PairError(f"{path} is not the manifest of a pair set")
        if data.get("version") != VERSION:
            raise PairError(
                f"{path} has version {data.get('version')}; this release reads version {VERSION}"
            )
        try:
            manifest = cls(
                settings=data["settings"],
                tensors={name: _row(row) for name, row in data["tensors"].items()},
                shards=tuple(ShardRecord.from_dict(shard, path) for shard in data["shards"]),
            )
            _ = manifest.count, manifest.nfe, manifest.tensors["image"], manifest.tensors["seed"]
        except PairError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PairError(f"{path} is damaged: {error!r}") from None
        return manifest


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Dtype and shape of one row of a tensor, of the right types."""
    return {"dtype": str(row["dtype"]), "shape": [int(size) for size in row["shape"]]}


def first_difference(old: Any, new: Any, name: str = "") -> str | None:
    """Say where two settings differ, as ``"teacher.sampler.steps was 18 and is now 10"``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            found = first_difference(old.get(key), new.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if old == new else f"{name} was {old!r} and is now {new!r}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file of a pair set whole or not at all.

    Raises:
        PairError: the disk refused, for example because it is full; nothing is left behind.
    """
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise PairError(
            f"could not write {path} ({error.strerror or error}); once that is mended, "
            "the same command goes on from here"
        ) from error
