"""Two processes that share a program, without torchrun: they are forked once torch is imported,
which takes most of the time of a short program.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import socket
import sys

SLOW = "deqgen.training.trainer", "deqgen.models.get", "deqgen.models.deq_unet"


def main(program: str, *arguments: str) -> None:
    """Run the module ``program`` of this folder in both; one that fails ends the other."""
    for name in SLOW:
        importlib.import_module(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2")
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=rank, LOCAL_RANK=rank)
            sys.argv[1:] = arguments
            runpy.run_module(f"tests.training.{program}", run_name="__main__")
            return
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
