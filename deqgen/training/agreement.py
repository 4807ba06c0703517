"""How several processes end alike: what goes wrong in one of them is an error of all."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import distributed_c10d

from deqgen.training.state_file import CheckpointError

T = TypeVar("T")
Said: TypeAlias = list[Any]
"""An error as it goes from process to process: kind, text, and number and file of an OSError."""

# What an error of another process is raised as; of a kind that is not among them, as its next base
# that is.
KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ArithmeticError,
        CheckpointError,
        ConnectionError,
        ImportError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    )
}
PATIENCE = 120.0  # seconds that a process with an error waits for the others to come and hear of it
# In every process the same: all come to all of them.
_meetings = itertools.count()
_blocks = itertools.count()


def by_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Let the first process act; its result, or its error, is then that of every process."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            broadcast_object_list([None, _said(error)])
            raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise _made(outcome[1])
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
        errors = gather_object([None if error is None else _said(error)])
        error = error or next((_made(said) for said in errors if said is not None), None)
    if error is not None:
        raise error
    return cast(T, result)


@contextmanager
def as_one(accelerator: Accelerator) -> Iterator[None]:
    """A block full of messages: an error of one process, which breaks them off, is that of all.

    It costs nothing while there is none.
    """
    place = f"deqgen/block/{next(_blocks)}"
    try:
        yield
    except Exception as error:
        first = _first(error, place) if accelerator.num_processes > 1 else None
        if first is not None:
            raise first from None
        raise


def _first(error: Exception, place: str) -> Exception | None:
    """What broke this process off: the error of another one, if that left word before."""
    mine = json.dumps(_said(error))
    try:
        said = distributed_c10d._get_default_store().compare_set(place, "", mine).decode()
    except RuntimeError:  # the process that kept the store has ended
        return None
    broken_off = isinstance(error, RuntimeError)  # as gloo says it, or NCCL
    return _made(json.loads(said)) if broken_off and said != mine else None


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


def _said(error: Exception) -> Said:
    """What another process is told of an error."""
    if isinstance(error, OSError) and error.errno is not None:
        name = None if error.filename is None else str(error.filename)
        return ["OSError", error.strerror, error.errno, name]
    kind = next((kind for kind in type(error).__mro__ if KINDS.get(kind.__name__) is kind), None)
    if kind is None or (kind is RuntimeError and type(error) is not kind):
        return ["RuntimeError", f"{type(error).__name__}: {error}", None, None]
    return [kind.__name__, str(error), None, None]


def _made(said: Said) -> Exception:
    """The error that a process was told of."""
    kind, text, number, name = said
    if number is not None:
        return OSError(number, text, name)  # of the subclass that belongs to the number
    return KINDS.get(kind, RuntimeError)(text)
