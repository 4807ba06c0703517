"""A training that is killed at a chosen point of its work on files; run as a program.

It reads lines of JSON, ``[directory, death]``, trains in a child of its own, which is killed before
its ``death``-th operation on files there, and answers with the child's exit status.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from deqgen.training import Hook, Moment, train
from tests.training.saver import die_at
from tests.training.toy import Dropping, config, seed_all, small_model


def learn(directory: Path) -> None:
    """Ten steps with checkpoints, rows and two hooks, one of which notes its calls."""

    def look(moment: Moment) -> dict[str, float]:
        with (directory.parent / f"{directory.name}.calls").open("a") as file:
            file.write(f"{moment.images}\n")
        torch.rand(3)
        return {"sum": float(next(moment.model.parameters()).sum())}

    hooks = [Hook(24, look), Hook(40, lambda _: {"constant": 1.0})]
    seed_all(0)
    settings = config(save_images=24)
    train(small_model(), Dropping(), settings, directory, hooks=hooks, progress=False)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        directory, death = json.loads(line)
        child = os.fork()
        if child == 0:
            die_at(death, directory)
            learn(Path(directory))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
