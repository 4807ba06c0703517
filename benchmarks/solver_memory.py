"""Peak memory of a solve of 40 steps, in bytes for each number of a float32 state.

Each solve runs in a process of its own: the peak is that of its resident memory, above what it was
before the solve and after one call of f.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from solver_step import METHODS, NEVER, STEPS, problem

from deqgen_solvers import solve

# Above 32 MiB a vector is mapped on its own and given back when freed: the peak is what was alive,
# without holes in the allocator's heap.
BATCH, SIZE = 64, 140_000


def peak_memory(_rounds: int) -> list[dict[str, Any]]:
    """Measure every method once; a peak does not vary as a time does."""
    rows = []
    for method, (_, ours) in METHODS.items():
        theirs = measure_in_a_process(method, "torchdeq")
        for name in ours:
            mine = measure_in_a_process(method, name)
            rows.append(
                {"method": name, "torchdeq": theirs, "deqgen": mine, "ratio": theirs / mine}
            )
    return rows


def measure_in_a_process(method: str, program: str) -> float:
    """Run this file for one solve and read what it prints."""
    command = [sys.executable, __file__, method, program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure(method: str, program: str) -> float:
    """Bytes for each number of the state, at the peak of one solve."""
    torch.set_num_threads(1)
    theirs, ours = METHODS[method]

    def run(batch: int, size: int) -> None:
        f, z0 = problem(batch, size)
        f(z0.fill_(0.1))  # touched, so that its pages are resident before
        before.append(resident("VmRSS"))
        reset_peak()
        if program == "torchdeq":
            theirs(f, z0, max_iter=STEPS, tol=0.0)
        else:
            solve(f, z0, solver=ours[program], tol=NEVER, max_steps=STEPS)

    before: list[int] = []
    run(1, 64)  # loads what is loaded on first use
    run(BATCH, SIZE)
    return (resident("VmHWM") - before[-1]) / (BATCH * SIZE)


def reset_peak() -> None:
    """Make the kernel's peak of this process what is resident now (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident(entry: str) -> int:
    """Bytes of resident memory, now (``VmRSS``) or at its peak (``VmHWM``)."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(entry))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
