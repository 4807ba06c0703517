"""Read pairs back: every shard mapped into memory, a whole batch gathered per call.

Letters: B samples, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deqgen.data.images import to_float
from deqgen.data.manifest import Manifest, PairError
from deqgen.data.shards import Array, open_shard, shard_sha256

Batch = dict[str, Tensor]


class PairDataset(torch.utils.data.Dataset[Batch]):
    """A finished folder of pairs, as :func:`deqgen.data.write_pairs` left it.

    Opening reads the manifest and the header of every shard, which finds missing and truncated
    files; it does not read the pairs. Only ``verify=True`` does, and only that finds a flipped
    byte.

    With a ``DataLoader``, pass ``collate_fn=dataset.collate``: a batch comes whole from
    :meth:`__getitems__` and needs no collating.

    Args:
        directory: the folder.
        verify: compare the SHA-256 of every shard.
        decode: return noise and image in float32 (bytes mapped to [-1, 1]); false returns what is
            stored, for decoding on the device.

    Attributes:
        manifest: the :class:`Manifest`.
        num_classes: 0 if the pairs have no labels.
        image_shape: ``(C, H, W)``.

    Raises:
        PairError: no manifest, an unfinished set, or a shard that is missing, truncated or
        changed; the
            message names it.
    """

    def __init__(self, directory: str | Path, *, verify: bool = False, decode: bool = True) -> None:
        self.directory = Path(directory)
        self.decode = decode
        self.manifest = manifest = Manifest.read(self.directory)
        if not manifest.complete:
            raise PairError(
                f"{self.directory} is not finished: run the command that began it once more"
            )
        self.image_shape = tuple(int(size) for size in manifest.tensors["image"]["shape"])
        self.num_classes = (
            int(manifest.settings["teacher"]["num_classes"]) if "label" in manifest.tensors else 0
        )
        self._starts = self._shard_starts()  # (shards,)
        self._shards: list[dict[str, Array]] | None = None
        if verify:
            self.verify()
        self._open()

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
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)  # (B,)
        size = len(self)
        if len(wanted) and not -size <= wanted.min() <= wanted.max() < size:
            raise IndexError(
                f"pair indices must lie in {-size}..{size - 1}, got {wanted.min()}..{wanted.max()}"
            )
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

    def verify(self, progress: Callable[[str], Any] | None = None) -> None:
        """Read every shard and compare its checksum.

        Args:
            progress: called with the name of each shard that was found whole.

        Raises:
            PairError: naming the first shard that differs.
        """
        for record in self.manifest.shards:
            path = self.directory / record.file
            if not path.is_file():
                raise PairError(f"shard {record.file} is missing from {self.directory}")
            if shard_sha256(path) != record.sha256:
                raise PairError(
                    f"shard {record.file} in {self.directory} is damaged: its SHA-256 is not the "
                    "manifest's; delete it and run the command that made it once more"
                )
            if progress is not None:
                progress(record.file)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: a worker process opens its own instead of being sent the data."""
        return {**self.__dict__, "_shards": None}

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

    def _open(self) -> list[dict[str, Array]]:
        if self._shards is None:
            self._shards = [
                open_shard(self.directory, record, self.manifest.tensors)
                for record in self.manifest.shards
            ]
        return self._shards

    def _gather(self, wanted: Array) -> dict[str, Array]:
        """Stored rows in the order asked for."""
        shards = self._open()
        out = {
            name: np.empty((len(wanted), *array.shape[1:]), array.dtype)
            for name, array in shards[0].items()
        }
        for shard, places, rows in self._by_shard(wanted):
            for name, array in shards[shard].items():
                out[name][places] = array[rows]
        return out

    def _by_shard(self, wanted: Array) -> Iterator[tuple[int, Array, Array]]:
        """For each shard needed: its number, places in the batch, and rows in the shard, rising."""
        order = np.argsort(
            wanted, kind="stable"
        )  # (B,); rising rows visit each page of a file once
        owner = np.searchsorted(self._starts, wanted[order], side="right") - 1  # (B,), rising
        for shard, first, size in zip(
            *np.unique(owner, return_index=True, return_counts=True), strict=True
        ):
            places = order[first : first + size]
            yield int(shard), places, wanted[places] - self._starts[shard]
