"""Which examples a step sees, and its random numbers: functions of (seed, step, part) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Indices of the examples of one step, ``(batch_size,)``.

    The examples are dealt from one shuffled deck after another, so that after any whole number of
    decks each example was seen equally often; a batch may end one deck and begin the next.

    Args:
        count: examples in all, at least 1.
        batch_size: examples of a step.
        seed: of the shuffling.
        step: 0 for the first.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, count)
    decks = {int(epoch): _permutation(seed, int(epoch), count) for epoch in np.unique(epochs)}
    return np.array([decks[int(e)][p] for e, p in zip(epochs, places, strict=True)], dtype=np.int64)


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """A CPU generator for the random numbers of one part of one step.

    The numbers are mixed first: neighbouring seeds must not give shifted copies of one run. Part 0
    draws what the whole batch draws where it is not cut.
    """
    mixed = int(np.random.SeedSequence([seed, step, part]).generate_state(1)[0])
    return torch.Generator().manual_seed(mixed)


@dataclass(frozen=True)
class Part:
    """A share of a step's batch that goes through the model at once.

    Attributes:
        number: 0 for the first of the step.
        indices: its examples, ``(microbatch,)``.
        generator: draws its random numbers.
    """

    number: int
    indices: NDArray[np.int64]
    generator: torch.Generator


def cut(
    indices: NDArray[np.int64], parts: int, seed: int, step: int, *, rank: int, processes: int
) -> list[Part]:
    """The parts of a step that fall to one process: every ``processes``-th, from ``rank`` on.

    Args:
        indices: examples of the whole step, ``(batch_size,)``.
        parts: how many in all; divides the batch size and is a multiple of ``processes``.
        seed: of the random numbers.
        step: 0 for the first.
        rank: number of this process.
        processes: how many there are.
    """
    shares = indices.reshape(parts, -1)
    return [
        Part(number, shares[number], step_generator(seed, step, number))
        for number in range(rank, parts, processes)
    ]
