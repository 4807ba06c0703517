"""A process that saves checkpoints and is killed at a chosen point of it; run as a program.

It reads lines of JSON, ``[directory, keep, images, death]``, saves in a child of its own, and
answers with the child's exit status. The child is killed before its ``death``-th operation on
files; below zero, by the system while a file grows beyond ``-death`` bytes; never if it is 0.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deqgen.training import Checkpoints

_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.chmod"}


def model_of(images: int) -> nn.Linear:
    """A model that says after how many images it was saved."""
    model = nn.Linear(30, 40)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(images)
    return model


def save(directory: str | Path, keep: int, images: int) -> Path:
    state = {"images": images, "momentum": torch.full((500,), float(images))}
    return Checkpoints(directory, keep=keep).save(images, state, model_of(images), model_of(images))


def die_at(death: int, directory: str) -> None:
    """Flushing is counted, and left out: a kill loses nothing that was written."""
    if death < 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (-death, -death))
        return
    left = death

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        within = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # of an open folder
        paths = [str(path) for path in arguments[:2]]  # a link's target comes before its name
        if event in _OPERATIONS and (within or any(path.startswith(directory) for path in paths)):
            count()

    os.fsync = count  # type: ignore[assignment]
    sys.addaudithook(watch)


class Saver:
    """The process, seen from the outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def save(self, directory: Path, keep: int, images: int, death: int = 0) -> int:
        """Save in a process of its own; 0, or minus the signal that killed it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(directory), keep, images, death]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def running_saver() -> Iterator[Saver]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training.saver"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Saver(process)  # the block's end closes its input, and that ends it


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        directory, keep, images, death = json.loads(line)
        child = os.fork()
        if child == 0:
            die_at(death, directory)
            save(directory, keep, images)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
