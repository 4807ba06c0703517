"""Read pairs back: every shard mapped into memory, a whole batch gathered per call.

Letters: B samples, T tensors of a pair, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqgen.data.gather import gather
from deqgen.data.images import to_float
from deqgen.data.manifest import MANIFEST, Manifest, PairError, ShardRecord
from deqgen.data.remote import RemoteFolder, default_cache, is_remote
from deqgen.data.shards import (
    DTYPES,
    Array,
    check_shard,
    open_shard,
    row_bytes,
    shard_file,
)

Batch = dict[str, Tensor]


class PairDataset(torch.utils.data.Dataset[Batch]):
    """A finished folder of pairs, as :func:`deqgen.data.write_pairs` left it.

    Opening reads the manifest and the header of every shard, which finds the files that are
    missing or cut at that moment; it does not read the pairs. Only ``verify=True`` does, and only
    that finds a flipped byte. A file that is cut after opening is not noticed: the system ends a
    process that reads beyond its end. What a process reads stays mapped: it is the system's page
    cache, shared by all workers and given back when memory is short, and shows up in a process's
    resident size. Threads may share a set.

    With a ``DataLoader``, pass ``collate_fn=dataset.collate``: a batch comes whole from
    :meth:`__getitems__` and needs no collating.

    Args:
        directory: the folder; or an fsspec path to one, such as ``"s3://bucket/pairs"``, whose
            shards are fetched when first needed and checked on arrival.
        verify: compare the SHA-256 of every shard.
        decode: return noise and image in float32 (bytes mapped to [-1, 1]); false returns what is
            stored, for decoding on the device.
        cache: where fetched shards are kept; default: ``$DEQGEN_CACHE/pairs``, else
            ``~/.cache/deqgen/pairs``. Nothing is ever removed from it.

    Attributes:
        manifest: the :class:`Manifest`.
        num_classes: 0 if the pairs have no labels.
        image_shape: ``(C, H, W)``.

    Raises:
        PairError: no manifest or a damaged one, an unfinished set, or a shard that is missing,
            truncated or (with ``verify``) changed; the message names it.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        verify: bool = False,
        decode: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        self.directory = directory if is_remote(directory) else Path(directory)
        self.decode = decode
        self._remote: RemoteFolder | None = None
        if is_remote(directory):
            self._remote = RemoteFolder(
                str(directory), default_cache() if cache is None else Path(cache)
            )
        self.manifest = manifest = self._read_manifest()
        if not manifest.complete:
            raise PairError(self._unfinished())
        self.image_shape = tuple(int(size) for size in manifest.tensors["image"]["shape"])
        self.num_classes = manifest.num_classes
        self._starts = self._shard_starts()  # (shards,)
        self._sizes = np.array([row_bytes(*item) for item in manifest.tensors.items()])  # (T,)
        self._close()
        if verify:
            self.verify()
        if self._remote:
            self._remote.check_sizes(manifest)
        else:
            for index in range(len(manifest.shards)):
                self._shard(index)

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, index: int) -> Batch:
        """One pair: ``noise``, ``image`` ``(C, H, W)``; ``label`` (if any), ``seed`` ``()``."""
        return {name: tensor[0] for name, tensor in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        """Several pairs at once.

        Args:
            indices: B integers in ``-len..len - 1``, in any order, with or without repetition.

        Returns:
            ``noise`` and ``image`` ``(B, C, H, W)`` float32, image in about [-1, 1]; ``label``
            (absent if the pairs have none) and ``seed`` ``(B,)`` int64. Stored dtypes if
            ``decode`` is false.

        Raises:
            IndexError: an index out of range.
            TypeError: indices that are no integers.
        """
        wanted = np.asarray(indices).reshape(-1)  # (B,)
        if wanted.dtype.kind not in "iu" and len(wanted):
            raise TypeError(
                f"pair indices must be integers, got {wanted.dtype}; for a mask, pass the places "
                "where it is true"
            )
        size = len(self)
        low, high = (int(wanted.min()), int(wanted.max())) if len(wanted) else (0, 0)
        if not -size <= low <= high < size:
            raise IndexError(f"pair indices must lie in {-size}..{size - 1}, got {low}..{high}")
        wanted = wanted.astype(np.int64, copy=False)
        if low < 0:
            wanted = np.where(wanted < 0, wanted + size, wanted)
        batch = {name: torch.from_numpy(array) for name, array in self._gather(wanted).items()}
        if not self.decode:
            return batch
        batch["noise"] = batch["noise"].float()
        image = batch["image"]
        batch["image"] = to_float(image) if image.dtype == torch.uint8 else image.float()
        return batch

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """Pass a batch on as it is, for ``DataLoader(collate_fn=...)``."""
        return batch

    def seeds(self) -> Tensor:
        """The seeds of all pairs, ``(len,)`` int64, in the order of the pairs."""
        shards = (self._shard(index)["seed"] for index in range(len(self.manifest.shards)))
        return torch.from_numpy(np.concatenate(list(shards)))

    def verify(self, progress: Callable[[str], Any] | None = None) -> None:
        """Read everything and compare checksums: of the manifest, of every shard, of its record.

        Args:
            progress: called with the name of each shard that was found whole.

        Raises:
            PairError: naming the first file that differs.
        """
        if self._read_manifest() != self.manifest:
            raise PairError(f"{MANIFEST} in {self.directory} is another one than on opening")
        for record in self.manifest.shards:
            if self._remote:
                self._remote.verify(record)
            else:
                self._verify_local(Path(self.directory), record)
            if progress is not None:
                progress(record.file)

    @staticmethod
    def _verify_local(directory: Path, record: ShardRecord) -> None:
        check_shard(directory / record.file, record, str(directory))
        beside = (directory / record.file).with_suffix(".json")
        if not beside.is_file() or beside.read_bytes() != record.to_bytes():
            raise PairError(
                f"the record of shard {record.file} in {directory} is missing or damaged: it is "
                "not the manifest's; run the command that made it once more"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: a worker process opens its own instead of being sent the data."""
        own = ("_shards", "_origins", "_span", "_lock")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()

    def _close(self) -> None:
        """Have no shard mapped."""
        shards = len(self.manifest.shards)
        self._shards: list[dict[str, Array] | None] = [None] * shards
        # Where pair 0 would lie if a shard's T tensors reached back to it; 0 while not mapped.
        self._origins = np.zeros((len(self.manifest.tensors), shards), dtype=np.int64)
        self._span: tuple[int, int] | None = None  # from the lowest map to the end of the highest
        self._lock = Lock()

    def _read_manifest(self) -> Manifest:
        if self._remote:
            return self._remote.manifest()
        return Manifest.read(Path(self.directory))

    def _unfinished(self) -> str:
        """What to say of a set that is not complete: which shards are missing, where known."""
        missing, size = "", self.manifest.settings.get("shard_size")
        if self._remote is None and isinstance(size, int) and size > 0:
            files = [shard_file(index) for index in range(ceil(len(self) / size))]
            gone = [name for name in files if not (Path(self.directory) / name).is_file()]
            if gone:
                missing = (
                    f"; {len(gone)} of {len(files)} shards are missing, the first is {gone[0]}"
                )
        return (
            f"{self.directory} is not finished{missing}: run the command that began it once more, "
            "in every process if there were several (under torchrun, each makes its own shards)"
        )

    def _shard_starts(self) -> Array:
        starts = []
        total = 0
        for record in self.manifest.shards:
            if record.start != total or record.count < 1:
                raise PairError(
                    f"the manifest of {self.directory} lists {record.file} at pair {record.start}, "
                    f"and {total} pairs come before it"
                )
            starts.append(total)
            total += record.count
        return np.asarray(starts, dtype=np.int64)

    def _shard(self, index: int) -> dict[str, Array]:
        """The tensors of a shard, mapped on first use."""
        opened = self._shards[index]
        if opened is not None:
            return opened
        record = self.manifest.shards[index]
        path = self._remote.fetch(record) if self._remote else Path(self.directory) / record.file
        with self._lock:
            opened = self._shards[index]
            if opened is None:
                opened = open_shard(path, record, self.manifest.tensors, str(self.directory))
                begins = [array.ctypes.data for array in opened.values()]  # (T,)
                ends = [array.ctypes.data + array.nbytes for array in opened.values()]  # (T,)
                low, high = self._span or (begins[0], ends[0])
                self._span = min(low, *begins), max(high, *ends)
                self._origins[:, index] = begins - self._sizes * self._starts[index]
                self._shards[index] = opened  # last: other threads take it as the word to read
        return opened

    def _gather(self, wanted: Array) -> dict[str, Array]:
        """Stored rows in the order asked for, in few steps: they are a tenth of the time."""
        owner = self._starts.searchsorted(wanted, side="right") - 1  # (B,)
        if None in self._shards:
            for index in np.unique(owner):
                self._shard(index)
        span = self._span or (0, 1)  # none is open: no row was asked for
        places = self._origins.take(owner, axis=1)  # (T, B)
        places += self._sizes[:, None] * wanted  # (T, B)
        places -= span[0]
        out = {}
        for (name, row), size, place in zip(
            self.manifest.tensors.items(), self._sizes.tolist(), places, strict=True
        ):
            found = gather(place, DTYPES[row["dtype"]], size, span)
            out[name] = found.reshape(len(wanted), *row["shape"])
        return out
