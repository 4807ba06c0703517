"""Where and with what a run was made, for the record beside its results."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from deqgen.training.run_folder import write_json
from deqgen.versions import installed_version

ENVIRONMENT = "environment.json"
_PACKAGES = ("deqgen", "torch", "accelerate", "numpy", "safetensors")


def add_session(
    folder: str | Path, *, device: torch.device | str = "cpu", processes: int = 1
) -> None:
    """Add what :func:`describe_environment` says to the list in ``environment.json``.

    A run that is stopped and goes on has a session each time, maybe on another machine. What is
    damaged in the list is left out of it from then on, with a warning.

    Args:
        folder: of the run.
        device: of this process.
        processes: how many train together.
    """
    session = describe_environment(device=device, processes=processes)
    write_json(Path(folder) / ENVIRONMENT, [*read_sessions(folder), session])


def read_sessions(folder: str | Path) -> list[dict[str, Any]]:
    """The list in ``environment.json``; none if there is no file.

    What cannot be read is left out, with a warning.
    """
    path = Path(folder) / ENVIRONMENT
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    records = found if isinstance(found, list) else [found]
    sessions = [record for record in records if isinstance(record, dict)]
    if len(sessions) < len(records):
        warnings.warn(f"{path} is damaged; what is readable of it is kept", stacklevel=2)
    return sessions


def describe_environment(
    *, device: torch.device | str = "cpu", processes: int = 1
) -> dict[str, Any]:
    """Versions, machine, git commit and command line, as JSON data.

    Args:
        device: of this process.
        processes: how many train together.

    Returns:
        ``git`` is None where the package does not run from a git checkout.
    """
    packages = {name: installed_version(name) for name in _PACKAGES}
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "directory": os.getcwd(),
        "python": platform.python_version(),
        "packages": {**packages, "torch": torch.__version__},
        "platform": platform.platform(),
        "device": _device_name(torch.device(device)),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "git": describe_checkout(Path(__file__).resolve().parent),
    }


def describe_checkout(folder: Path) -> dict[str, Any] | None:
    """The git commit of the source files in ``folder``, and whether any tracked file is changed.

    Returns:
        ``{"commit": "...", "dirty": bool}``; None if git does not track files there, as in an
        environment that was installed somewhere inside another project's checkout.
    """
    if not _git(folder, "ls-files", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None if there is no git, no checkout, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return str(device)
