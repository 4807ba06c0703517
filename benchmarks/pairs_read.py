"""Random batches of 256 pairs a second, beside plain numpy memory maps of the same data; 3x32x32.

The maps are one file a tensor over the whole set, decoded alike: "batched" indexes each with all
indices of a batch at once, the least that numpy can do; "by item" reads pair by pair and stacks, as
a data set without batches does. "Ratio" is to the first. "Decoded" is float32, image in [-1, 1], as
a training step wants it; "stored" leaves that to the device. The page cache holds the data.

Letters: N pairs in all, B samples, C channels, H height, W width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs_write import BATCH, COUNT, Instant
from timing import interleaved
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deqgen.data import PairDataset, to_float, write_pairs

WORKERS = (0, 2)


class Plain(Dataset[dict[str, Tensor]]):
    """Numpy memory maps, one a tensor, and nothing else."""

    def __init__(self, folder: Path, pairs: PairDataset, decode: bool) -> None:
        self.decode, self.maps = decode, {}
        stored = PairDataset(pairs.directory, decode=False).__getitems__(range(len(pairs)))
        for name, tensor in stored.items():
            np.save(folder / f"{name}.npy", tensor.numpy())
            self.maps[name] = np.load(folder / f"{name}.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.maps["seed"])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """B pairs, (B, C, H, W) and (B,)."""
        wanted = np.asarray(indices)
        batch = {name: torch.from_numpy(array[wanted]) for name, array in self.maps.items()}
        return decoded(batch) if self.decode else batch


class ByItem(Dataset[dict[str, Tensor]]):
    """The same maps, read pair by pair."""

    def __init__(self, plain: Plain) -> None:
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """B pairs, (B, C, H, W) and (B,)."""
        items = [{k: np.array(v[i]) for k, v in self.plain.maps.items()} for i in indices]
        batch = {k: torch.from_numpy(np.stack([item[k] for item in items])) for k in items[0]}
        return decoded(batch) if self.plain.decode else batch


def decoded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Noise and images in float32."""
    return {**batch, "noise": batch["noise"].float(), "image": to_float(batch["image"])}


def random_reads(rounds: int) -> list[dict[str, Any]]:
    """Measure both readers with and without workers and decoding."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Instant(), Path(folder) / "pairs", count=COUNT)
        for decode in (True, False):
            ours = PairDataset(Path(folder) / "pairs", decode=decode)
            theirs = Plain(Path(folder), ours, decode)
            for workers in WORKERS:
                times = interleaved(
                    {
                        "batched": partial(epoch, theirs, workers),
                        "by item": partial(epoch, ByItem(theirs), workers),
                        "deqgen": partial(epoch, ours, workers),
                    },
                    rounds,
                )
                rate = {name: COUNT / spent for name, spent in times.items()}
                rows.append(
                    {
                        "workers": workers,
                        "batches": "decoded" if decode else "stored",
                        "memmap by item, pairs/s": rate["by item"],
                        "memmap batched, pairs/s": rate["batched"],
                        "deqgen, pairs/s": rate["deqgen"],
                        "ratio": rate["deqgen"] / rate["batched"],
                    }
                )
    return rows


def epoch(dataset: Any, workers: int) -> int:
    """Read every pair once, in a random order; return their number."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    batches = [batch.tolist() for batch in order.split(BATCH)]
    if workers == 0:
        return sum(len(dataset.__getitems__(batch)["seed"]) for batch in batches)
    same: Callable[[Any], Any] = PairDataset.collate
    loader: Any = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=same)
    return sum(len(batch["seed"]) for batch in loader)
