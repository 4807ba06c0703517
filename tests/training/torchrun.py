"""Start two processes of a program of these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def launch(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Run the module ``program`` of this folder, as users do."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return _started(*command, "-m", f"tests.training.{program}", *arguments)


def launch_quickly(program: str, *arguments: str) -> subprocess.Popen[str]:
    """The same in half the time, where it does not matter how they are started."""
    return _started("-m", "tests.training.pair", program, *arguments)


def _started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
