"""How several processes end alike: what goes wrong in one of them is an error of all."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import distributed_c10d

T = TypeVar("T")
PATIENCE = 120.0  # seconds that a process with an error waits for the others to come and hear of it
_meetings = itertools.count()  # in every process the same: all come to all of them


def by_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Let the first process act; its result, or its error, is then that of every process."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            broadcast_object_list([None, _portable(error)])
            raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


def by_each(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Let every process act; an error in one of them is raised in all, once all are done.

    The action may use the process group. A process that fails in the middle of that leaves the
    others waiting for it: it raises its error after ``PATIENCE``, which ends them too.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    if accelerator.num_processes > 1 and _all_come(accelerator, error is not None):
        errors = gather_object([None if error is None else _portable(error)])
        error = error or next((other for other in errors if other is not None), None)
    if error is not None:
        raise error
    return cast(T, result)


def _all_come(accelerator: Accelerator, failed: bool) -> bool:
    """Wait until all processes are here, without a collective call that one could mistake.

    A process that has failed does not wait for ever; then it is false.
    """
    store = distributed_c10d._get_default_store()
    place = f"deqgen/{next(_meetings)}"
    store.set(f"{place}/{accelerator.process_index}", "here")
    wanted = [f"{place}/{rank}" for rank in range(accelerator.num_processes)]
    end = time.monotonic() + PATIENCE
    pause = 0.001
    while not store.check(wanted):
        if failed and time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    return True


def _portable(error: Exception) -> Exception:
    """The error, if another process can make it again; else a plain one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
