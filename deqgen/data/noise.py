"""From a seed to its noise: one CPU generator a sample, so that batches cannot matter.

A seed's generator is used in one fixed order, EDM's: first the noise, then whatever else is random
about that sample (its class, or the start of GET's equilibrium).

Letters: B samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SEED_LIMIT = 2**32  # the CPU generator (mt19937) reads 32 bits of a seed; two above would collide
SEEDS_PER_RUN = 10_000_000


def generators_for(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator a seed.

    Args:
        seeds: integers in ``0..2**32 - 1``.

    Raises:
        ValueError: a seed out of range.
    """
    return [_generator(int(seed)) for seed in seeds]


def noise_for(seeds: Iterable[int] | Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, the first draw of each seed's generator.

    The values are rounded to half precision, so that what a pair file stores is exactly what the
    teacher saw, and what a student is later given is of the same kind.

    Args:
        seeds: one integer a sample; or the generators from :func:`generators_for`, to go on drawing
            from them.
        shape: of one sample, for example ``(C, H, W)``.

    Returns:
        ``(B, *shape)`` float32 on the CPU.

    Raises:
        ValueError: a seed out of range.

    Example:
        >>> torch.equal(noise_for([7], (3, 8, 8))[0], noise_for([5, 6, 7], (3, 8, 8))[2])
        True
    """
    chosen: list[int | torch.Generator] = list(seeds)
    noise = torch.empty((len(chosen), *shape))  # (B, *shape)
    for row, seed in zip(noise, chosen, strict=True):  # the draw of torch.randn, in place
        row.normal_(generator=seed if isinstance(seed, torch.Generator) else _generator(int(seed)))
    return noise.copy_(noise.half())


def pair_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """Seeds of the pairs with these indices: ``(seed + 1) * 10_000_000 + index``.

    Seeds below ten million are thus never trained on: they are for people and for evaluation.

    Args:
        seed: of the whole pair set, from 0 to 428.
        indices: of the pairs, each below ten million.

    Raises:
        ValueError: an index out of range, or a result that is no 32-bit seed.
    """
    start = (seed + 1) * SEEDS_PER_RUN
    seeds = [start + int(index) for index in indices]
    if seeds and not start <= min(seeds) <= max(seeds) < start + SEEDS_PER_RUN:
        raise ValueError(
            f"pair indices must lie in 0..{SEEDS_PER_RUN - 1}, "
            f"got {min(seeds) - start}..{max(seeds) - start}"
        )
    if seed < 0 or (seeds and max(seeds) >= SEED_LIMIT):
        raise ValueError(
            f"the seed of a pair set must lie in 0..{SEED_LIMIT // SEEDS_PER_RUN - 1}, got {seed}"
        )
    return seeds


def _generator(seed: int) -> torch.Generator:
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"a seed must lie in 0..{SEED_LIMIT - 1}, got {seed}")
    return torch.Generator().manual_seed(seed)
