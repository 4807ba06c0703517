"""Which seeds a file of an official pair set holds: its name tells the last, the others follow.

The scripts of locuslab/get cut the seeds 0, 1, 2, ... into batches of equal size, deal them to the
processes in turn, and write a file for every 50 batches of a process. With one process a file thus
holds consecutive seeds. With more, the batches of a file are one round apart: its neighbours in the
order of names end one batch, not one file, later.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

BATCHES = 50
"""Batches of a process in one file."""


def seeds_of(last: list[int], counts: list[int]) -> tuple[list[Tensor], str]:
    """The seeds of all pairs, file by file.

    Args:
        last: the seed in the name of each file, rising.
        counts: pairs of each file.

    Returns:
        ``(count,)`` int64 for each file; and the rule in words, for the manifest. Where the names
        and counts fit neither of the ways in which the scripts write, a pair's seed is its place in
        the set.
    """
    if _consecutive(last, counts):
        rows = [
            torch.arange(seed - count + 1, seed + 1)
            for seed, count in zip(last, counts, strict=True)
        ]
        return rows, "those of the official files, consecutive up to the one in the name"
    processes = _processes(last, counts)
    if processes:
        batch = counts[0] // BATCHES
        steps = torch.arange(1 - BATCHES, 1).reshape(-1, 1) * processes * batch  # (50, 1)
        within = torch.arange(1 - batch, 1)  # (batch,)
        rows = [(seed + steps + within).reshape(-1) for seed in last]
        return rows, (
            f"those of the official files, dealt to {processes} processes in batches of {batch}"
        )
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    rows = [torch.arange(start, end) for start, end in pairwise(starts)]
    return rows, "place in the set: the names of the official files do not tell their seeds"


def _consecutive(last: list[int], counts: list[int]) -> bool:
    """Whether each file goes on after the one before it."""
    firsts = [seed - count + 1 for seed, count in zip(last, counts, strict=True)]
    return firsts[0] >= 0 and all(
        before < first for before, first in zip(last, firsts[1:], strict=False)
    )


def _processes(last: list[int], counts: list[int]) -> int:
    """The number of processes if whole rounds of them explain all names, else 0."""
    batch, odd = divmod(counts[0], BATCHES)
    if odd or len(set(counts)) > 1:
        return 0
    processes = next((i for i in range(1, len(last)) if last[i] - last[i - 1] != batch), len(last))
    start = last[0] - ((BATCHES - 1) * processes + 1) * batch + 1  # of all seeds
    expected = [
        start - 1 + ((BATCHES * turn + BATCHES - 1) * processes + process + 1) * batch
        for turn in range(len(last) // processes)
        for process in range(processes)
    ]
    return processes if start >= 0 and expected == last else 0
