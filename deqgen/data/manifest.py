"""The record beside a folder of pairs: how they were made, what they cost, whether they are whole.

A folder of pairs looks like this::

    manifest.json                      settings, cost, tensors; at the end all shards' checksums
    shards/pairs-000000.safetensors    noise, image, label, seed
    shards/pairs-000000.json           the record of that shard, written just before it appears

The manifest is written twice: with the settings before the first shard, and with the records of all
shards after the last. It holds no date and no machine, so that an interrupted run and an
undisturbed one end in the same bytes. ``docs/pairs_manifest.schema.json`` describes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from deqgen.atomic import replacing

FORMAT = "deqgen-pairs"
VERSION = 1
MANIFEST = "manifest.json"
DIGEST = re.compile(r"[0-9a-f]{64}")
SHARD = re.compile(r"shards/pairs-[0-9]{6,}\.safetensors")


class PairError(ValueError):
    """A folder of pairs cannot be written or read; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One shard: its file below the folder, first index, number of pairs, bytes and checksum.

    ``settings`` is the digest of the settings of its set, so that shards of two runs are never
    taken for one set.
    """

    file: str
    start: int
    count: int
    size: int
    sha256: str
    settings: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: Path | str) -> ShardRecord:
        """Read a record, or raise PairError naming ``source``.

        Its words become paths, of the shard and of its copy in a cache, so they are taken in no
        other form than the schema's.
        """
        try:
            record = cls(**data)
        except TypeError:
            raise PairError(f"{source} holds a shard record that is not readable") from None
        texts, numbers = ("file", "sha256", "settings"), ("start", "count", "size")
        if not (
            all(isinstance(getattr(record, key), str) for key in texts)
            and all(type(getattr(record, key)) is int for key in numbers)
        ):
            raise PairError(f"{source} holds a shard record that is not readable")
        if not SHARD.fullmatch(record.file):
            raise PairError(
                f"{source} names the shard {record.file!r}, which is none of shards/pairs-NNNNNN"
                ".safetensors"
            )
        if not (DIGEST.fullmatch(record.sha256) and DIGEST.fullmatch(record.settings)):
            raise PairError(f"{source} gives {record.file} a checksum that is no SHA-256")
        if record.start < 0 or record.count < 1 or record.size < 1:
            raise PairError(f"{source} gives {record.file} impossible numbers")
        return record

    def to_bytes(self) -> bytes:
        """The file beside the shard."""
        return _json(asdict(self))


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
    def num_classes(self) -> int:
        """Number of classes, 0 if the pairs have no labels."""
        return int(self.settings["teacher"]["num_classes"]) if "label" in self.tensors else 0

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return _digest(self.settings)

    def to_bytes(self) -> bytes:
        """The file: a function of the manifest alone, so that any other byte in it is damage.

        Reading compares them, and with them the SHA-256 in the file.
        """
        body = {
            "settings": self.settings,
            "tensors": self.tensors,
            "shards": [asdict(shard) for shard in self.shards],
        }
        return _json(
            {
                "format": FORMAT,
                "version": VERSION,
                "settings": self.settings,
                "nfe_per_pair": self.nfe,
                "nfe_total": self.nfe * self.count,
                "tensors": self.tensors,
                "complete": self.complete,
                "sha256": _digest(body),
                "shards": body["shards"],
            }
        )

    def write(self, directory: Path, *, new: bool = False) -> None:
        """Write ``manifest.json`` so that it is either the old one or the new one, never half.

        Args:
            directory: the folder of the pairs.
            new: leave one alone that is there by then.
        """
        write_atomically(directory / MANIFEST, [self.to_bytes()], new=new)

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
            content = path.read_bytes()
        except OSError as error:
            raise PairError(f"{path} cannot be read: {error.strerror or error}") from None
        return cls.from_bytes(content, path)

    @classmethod
    def from_bytes(cls, content: bytes, source: Path | str) -> Manifest:
        """Read the content of a manifest; ``source`` is what messages call it.

        Raises:
            PairError: it is damaged, or another release wrote it.
        """
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise PairError(f"{source} is damaged: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PairError(f"{source} is not the manifest of a pair set")
        if data.get("version") != VERSION:
            raise PairError(
                f"{source} has version {data.get('version')}; this release reads version {VERSION}"
            )
        try:
            manifest = cls(
                settings=data["settings"],
                tensors={name: _row(row) for name, row in data["tensors"].items()},
                shards=tuple(ShardRecord.from_dict(shard, source) for shard in data["shards"]),
            )
            _ = manifest.count, manifest.nfe, manifest.num_classes
            _ = manifest.tensors["noise"], manifest.tensors["image"], manifest.tensors["seed"]
            sound = manifest.to_bytes() == content
        except PairError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PairError(f"{source} is damaged: {error!r}") from None
        if not sound:
            raise PairError(
                f"{source} is damaged: it is not what its own SHA-256 says; run the command that "
                "made it once more"
            )
        return manifest


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _digest(data: dict[str, Any]) -> str:
    return sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Dtype and shape of one row of a tensor, of the right types."""
    shape = [int(size) for size in row["shape"]]
    if any(size < 1 for size in shape):
        raise ValueError(f"a tensor of shape {shape}")
    return {"dtype": str(row["dtype"]), "shape": shape}


def differences(
    old: Any, new: Any, name: str = "", words: tuple[str, str] = ("was", "is now")
) -> Iterator[tuple[str, str]]:
    """Each setting in which two sets differ, and how.

    Yields:
        ``("teacher.sampler.steps", "teacher.sampler.steps was 18 and is now 10")``, in order.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            path = f"{name}.{key}" if name else key
            yield from differences(old.get(key), new.get(key), path, words)
    elif old != new:
        yield name, f"{name} {words[0]} {old!r} and {words[1]} {new!r}"


def first_difference(
    old: Any, new: Any, name: str = "", words: tuple[str, str] = ("was", "is now")
) -> str | None:
    """Say where two settings differ first, as :func:`differences` does."""
    return next((said for _, said in differences(old, new, name, words)), None)


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, new: bool = False) -> None:
    """Write a file of a pair set whole or not at all; if ``new``, only where there is none yet.

    Raises:
        PairError: the disk refused, for example because it is full; nothing is left behind.
    """
    try:
        with replacing(path, new=new) as partial, partial.open("wb") as file:
            file.writelines(parts)
    except FileExistsError:  # another process was faster
        return
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError) -> PairError:
    """What to say when the disk refused."""
    return PairError(
        f"could not write {path} ({error.strerror or error}); once that is mended, "
        "the same command goes on from here"
    )
