"""Two gloo processes of one thread beside one process of two; the goal is within 10%.

The same training on the same two cores, in turn; the median step of each, the first one left out.
A model whose matrix products keep two threads busy is the harder case for the processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import training_step
from training_step import make_pairs

STEPS, TIMES = 6, 2


def processes(rounds: int) -> list[dict[str, Any]]:
    """Images a second of both, the better of two runs."""
    alone = [sys.executable]
    torchrun = [*alone, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    programs = {
        "one process, two threads": (alone, 2),
        "two processes, a thread each": (torchrun, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder))
        for turn in range(min(rounds, TIMES)):
            for number, (name, (launcher, threads)) in enumerate(programs.items()):
                output = Path(folder) / f"{turn}-{number}"
                seconds[name].append(step_of(launcher, threads, Path(folder), output))
    best = {name: training_step.BATCH / min(taken) for name, taken in seconds.items()}
    first = best["one process, two threads"]
    return [
        {"what": name, "images/s": rate, "x the first": rate / first} for name, rate in best.items()
    ]


def step_of(launcher: list[str], threads: int, folder: Path, output: Path) -> float:
    """Seconds of a step of this launch."""
    worker = Path(__file__).with_name("training_worker.py")
    arguments = [folder / "pairs", output, training_step.MODEL, training_step.BATCH, STEPS]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [*launcher, str(worker), *map(str, arguments)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    taken: float = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return taken
