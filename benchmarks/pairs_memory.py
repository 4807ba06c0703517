"""Memory of a reader of a million pairs, 9.2 GB of sparse files, in a process of its own; 3x32x32.

"Private" is what the process holds itself. "Mapped" adds the files' pages that it has touched:
they are the system's page cache, shared between processes and given back when memory is short.
"Above the import" leaves out PyTorch and this package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from solver_memory import resident

COUNT, SHARD, BATCH, BATCHES = 1_000_000, 4096, 256, 100


def reader_memory(_rounds: int) -> list[dict[str, Any]]:
    """Measure once; memory does not vary as a time does."""
    with tempfile.TemporaryDirectory() as folder:
        make_sparse(Path(folder), COUNT)
        command = [sys.executable, __file__, folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def make_sparse(folder: Path, count: int) -> None:
    """A set whose tensors are all zero and take no room: the headers, then a hole."""
    from pairs_write import Instant

    from deqgen.data import Manifest, ShardRecord
    from deqgen.data.pairs import plan_pairs
    from deqgen.data.shards import TORCH_DTYPES, shard_file, shard_parts

    planned = plan_pairs(Instant(), count, 0, SHARD, "uint8", "uniform")
    records = []
    (folder / "shards").mkdir()
    for index, start in enumerate(range(0, count, SHARD)):
        rows = min(SHARD, count - start)
        tensors = {
            name: torch.empty((rows, *row["shape"]), dtype=TORCH_DTYPES[row["dtype"]])
            for name, row in planned.tensors.items()
        }
        parts = shard_parts(tensors, {"start": start, "settings": planned.digest})
        size = sum(len(part) for part in parts)
        with (folder / shard_file(index)).open("wb") as file:
            file.write(parts[0])
            file.truncate(size)
        records.append(
            ShardRecord(
                file=shard_file(index),
                start=start,
                count=rows,
                size=size,
                sha256="0" * 64,
                settings=planned.digest,
            )
        )
    Manifest(settings=planned.settings, tensors=planned.tensors, shards=tuple(records)).write(
        folder
    )


def measure(folder: Path) -> list[dict[str, Any]]:
    """Open the set and read random batches; memory in MiB after each."""
    from deqgen.data import PairDataset

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    imported = resident("RssAnon") / 2**20

    def note(after: str, began: float, private: float) -> None:
        rows.append(
            {
                "after": after,
                "seconds": time.perf_counter() - began,
                "private above the import, MiB": private - imported,
                "private, MiB": private,
                "private and mapped, MiB": resident("VmHWM") / 2**20,
            }
        )

    note("import", time.perf_counter(), imported)
    start = time.perf_counter()
    pairs = PairDataset(folder)
    note(f"opening {len(pairs):,} pairs", start, resident("RssAnon") / 2**20)
    start, most = time.perf_counter(), 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        pairs.__getitems__(torch.randint(len(pairs), (BATCH,), generator=generator))
        most = max(most, resident("RssAnon"))
    note(f"reading {BATCHES * BATCH:,} at random", start, most / 2**20)
    start = time.perf_counter()
    pairs.seeds()
    note("all seeds", start, resident("RssAnon") / 2**20)
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
