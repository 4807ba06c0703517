"""How much memory a piece of work takes at its peak, on a CPU or a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that PyTorch's allocator holds at the peak of ``run``, beyond what it held before.

    On a GPU this is CUDA's own counter. On a CPU the profiler records every allocation, which slows
    ``run`` down; time it in another call.

    Args:
        run: the work; it must run on this device. What is first allocated in it, gradients of
            weights or kernels' workspaces, counts: call it once before, or allocate them.
        device: the CPU, or a GPU of CUDA (ROCm included).

    Raises:
        ValueError: a device of another kind, whose allocator cannot be asked.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _peak_of_cuda(run, device)
    if device.type != "cpu":
        raise ValueError(f"peak_memory knows the CPU and CUDA, not device {str(device)!r}")
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        profiler.start()
    try:
        run()
    finally:
        with _quiet():
            profiler.stop()
    held: Any = profiler.profiler
    events = [e for e in held.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the profiler writes to standard error, as it begins and ends, from being seen."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _peak_of_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
