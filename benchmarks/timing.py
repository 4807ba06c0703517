"""Times of several programs in one process, taken in turn so that a slow moment hits all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    programs: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 20.0
) -> dict[str, float]:
    """The median time of each program, in seconds; see :func:`each_round`."""
    taken = each_round(programs, rounds, seconds)
    return {name: statistics.median(times) for name, times in taken.items()}


def each_round(
    programs: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 20.0
) -> dict[str, list[float]]:
    """Run all programs in turn, after one round to warm up.

    Args:
        programs: what to time, by name.
        rounds: times that each is run, >= 1.
        seconds: no new round, beyond the third, once so much time has passed.

    Returns:
        The times of each program, in seconds, one a round.
    """
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program()
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        for done in range(rounds):
            if done >= 3 and time.perf_counter() - began > seconds:
                break
            for name, program in programs.items():
                start = time.perf_counter()
                program()
                taken[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return taken
