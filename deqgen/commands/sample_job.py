"""The work of ``deqgen sample``: each process makes its share, one of them writes.

Batches are cut from the seeds before they are shared out, so that an image meets the same batch
mates in however many processes.

Letters: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from deqgen.data.image_writer import write_image_zip
from deqgen.data.sample_writers import PngFolder, to_pixels, write_grid, write_npz
from deqgen.evaluation.generated import Solve
from deqgen.evaluation.label_policy import Policy, labels_for
from deqgen.models import EquilibriumModel, GenerativeModel
from deqgen.processes import Processes
from deqgen.sampling import Batch
from deqgen.teachers.teacher import weights_sha256
from deqgen_solvers import Tolerance

_LEAST = 2  # on a CPU, torch's kernels for a single sample round otherwise than those for more


@dataclass(kw_only=True)
class SampleJob:
    """What to make, and with whom.

    Args:
        model: on the device of ``ours``.
        seeds: N of them, each once.
        labels: as :func:`~deqgen.evaluation.label_policy.check_policy` returns it.
        solve: how the model is run.
        batch_size: images at a time.
        ours: the processes that share the work; every one makes the same calls.
    """

    model: GenerativeModel
    seeds: Sequence[int]
    labels: Policy
    solve: Solve
    batch_size: int
    ours: Processes
    spent: Counter[int] = field(default_factory=Counter)  # samples by their evaluations

    def write_file(self, out: Path, columns: int = 0) -> None:
        """Write an ``.npz``, ``.zip`` or ``.png``: rank 0 does, as the others send theirs."""
        arrays = self._in_order()
        if self.ours.rank:
            for _ in arrays:  # there are none; what counts is that it runs
                pass
        elif out.suffix.lower() == ".npz":
            write_npz(out, arrays, len(self.seeds), self._labels(self.seeds))
        elif out.suffix.lower() == ".zip":
            write_image_zip(out, chain.from_iterable(arrays), self._labels(self.seeds))
        else:
            write_grid(out, arrays, len(self.seeds), columns)

    def write_folder(self, out: Path) -> None:
        """Write one PNG a seed, those that are missing: every process its own."""
        folder = PngFolder(out)
        if self.ours.rank == 0:
            folder.claim(self._settings(), self.seeds)
        self.ours.barrier()
        there = folder.there()
        self.ours.barrier()  # nobody writes before all have looked
        parts = [part for part in self._parts() if folder.missing(part, there)]
        with self._bar(len(self.seeds) - sum(map(len, parts))) as bar:
            for batch in self._made(parts):
                missing = set(folder.missing(batch.seeds, there))
                for seed, pixels in zip(batch.seeds, to_pixels(batch.images), strict=True):
                    if seed in missing:
                        folder.write(seed, pixels)
                bar.update(min(len(batch.seeds) * self.ours.world, bar.total - bar.n))

    def report(self, out: Path) -> str | None:
        """What was made, and with a tolerance what it took; on rank 0."""
        counts = self.ours.gather(dict(self.spent))
        if counts is None:
            return None
        size = self.model.config.image_size
        said = f"{out}: {len(self.seeds):,} images of {size}x{size}."
        spent = sum(map(Counter, counts), Counter[int]())
        return said + _histogram(spent) if self._has_tolerance() and spent else said

    def _in_order(self) -> Iterator[NDArray[Any]]:
        """On rank 0 all batches as arrays, one after the other; nothing elsewhere."""
        parts = self._parts()
        mine = self._made(parts)
        with self._bar(0) as bar:
            for first in range(0, len(parts), self.ours.world):
                batch = next(mine, None)
                rows = None if batch is None else torch.from_numpy(self._stored(batch.images))
                for made in self.ours.gather(rows) or ():
                    if made is not None:
                        yield made.numpy()
                bar.update(sum(map(len, parts[first : first + self.ours.world])))

    def _stored(self, images: Tensor) -> NDArray[Any]:
        """Pixels (B, H, W, 3) as bytes; latents (B, C, H, W) as they are."""
        return to_pixels(images) if self.model.config.channels in (1, 3) else images.numpy()

    def _parts(self) -> list[Sequence[int]]:
        """The seeds in batches."""
        starts = range(0, len(self.seeds), self.batch_size)
        return [self.seeds[start : start + self.batch_size] for start in starts]

    def _made(self, parts: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """This process's share of the batches. All but the last are full, and so they stay."""
        seeds = [*chain.from_iterable(self.ours.share(parts))]
        made = self.solve.batches(self.model, seeds, self.labels, self.batch_size, _LEAST)
        for batch in made:
            if batch.evaluations is not None:
                self.spent.update(batch.evaluations.tolist())
            yield batch

    def _labels(self, seeds: Sequence[int]) -> list[int] | None:
        labels = labels_for(self.labels, seeds, self.model.config)
        return None if labels is None else labels.tolist()

    def _has_tolerance(self) -> bool:
        model = self.model
        own = isinstance(model, EquilibriumModel) and model.config.rtol > 0
        return self.solve.tol != "model" or own

    def _settings(self) -> dict[str, Any]:
        """All that an image depends on beside its seed, but for rounding."""
        tol = self.solve.tol
        return {
            "architecture": self.model.architecture,
            "config": self.model.saved_config().to_dict(),
            "weights_sha256": weights_sha256(self.model),
            "labels": self.labels,
            "max_steps": self.solve.max_steps,
            "rtol": tol.rtol if isinstance(tol, Tolerance) else None,
            "solver": self.solve.solver,
            "precision": self.solve.precision,
        }

    def _bar(self, done: int) -> Any:
        hidden = None if self.ours.rank == 0 else True  # None: where nobody looks
        total = len(self.seeds)
        return tqdm(total=total, initial=done, unit="image", disable=hidden, desc="sample")


def _histogram(spent: Counter[int]) -> str:
    """How many samples took how many evaluations, (evaluations to samples)."""
    total, most = spent.total(), max(spent.values())
    mean = sum(count * taken for taken, count in spent.items()) / total
    rows = [
        f"\n{taken:6d}  {count:8,d}  {'#' * int(np.ceil(40 * count / most))}"
        for taken, count in sorted(spent.items())
    ]
    return f"\nEvaluations of the cell a sample: {mean:.2f} on average.{''.join(rows)}"
