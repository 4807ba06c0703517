"""Run an example as a stranger does, in a process of its own or, much sooner, in this one."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Done = subprocess.CompletedProcess[str]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process to be interrupted, on one thread as this one is: they shall end in equal bytes."""
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def alone(script: str, *arguments: object) -> Done:
    """Run a command in a process of its own, which takes seconds to import PyTorch."""
    child = start(script, *arguments)
    out, err = child.communicate()
    return Done(child.args, child.returncode, out, err)


def here(script: str, *arguments: object) -> Done:
    """Run a command in this process."""
    argv = [str(EXAMPLES / script), *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    path = [str(Path(argv[0]).parent), *sys.path]
    with (
        patch("sys.argv", argv),
        patch("sys.path", path),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
            if isinstance(stopped.code, str):
                print(stopped.code, file=err)
    return Done(argv, code, out.getvalue(), err.getvalue())
