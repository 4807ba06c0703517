"""Several processes as one program: who am I, which device is mine, and how results meet.

``torchrun --nproc_per_node=4 -m deqgen ...`` starts the same command four times and tells each its
place in ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``. Started without torchrun, a command is one
process that talks to nobody. (A training joins its processes through accelerate.)
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # a process that has done its share waits for the slowest
_MEETINGS = count()


class ProcessError(RuntimeError):
    """Another process of this run has ended, so that there is nobody to wait for."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; see :func:`processes`.

    Attributes:
        rank: 0 up to ``world - 1``. Rank 0 writes what there is one of.
        world: number of processes.
        device: where this one computes.
    """

    rank: int
    world: int
    device: torch.device
    _group: Any = field(default=None, repr=False)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: items ``rank``, ``rank + world``, ...; together they are all."""
        return items[self.rank :: self.world]

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            ProcessError: one of them has ended instead.
        """
        if self.world > 1:
            with _others_alive():
                distributed.barrier(self._group)

    def gather(self, value: T) -> list[T] | None:
        """Bring one value of each process to rank 0; every process must call it.

        Args:
            value: tensors, numbers, strings, ``None``, and lists, tuples and dicts of these. It
                travels as a file of tensors does, so that nothing received can run code.

        Returns:
            On rank 0 the values in the order of the ranks, with tensors on the CPU if there are
            several; ``None`` elsewhere.

        Raises:
            TypeError: the value holds something else.
            ProcessError: another process has ended.
        """
        _check_plain(value)
        if self.world == 1:
            return [value]
        mine = _packed(value)  # (bytes,)
        with _others_alive():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
            distributed.all_gather(sizes, torch.tensor([len(mine)]), group=self._group)
            room = torch.zeros(int(max(sizes)), dtype=torch.uint8)
            room[: len(mine)] = mine
            rows = [torch.empty_like(room) for _ in sizes] if self.rank == 0 else None
            distributed.gather(room, rows, group=self._group)
        if rows is None:
            return None
        return [_unpacked(row[: int(size)]) for row, size in zip(rows, sizes, strict=True)]


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started, for a ``with`` block; alone, nothing is joined.

    What they exchange goes through gloo on the CPU, whatever the device. A process group that
    exists already, such as a trainer's, is used and left standing; one made here ends here.

    Args:
        device: as for :func:`pick_device`.

    Raises:
        ValueError: the environment is half set, or the device is not there.
        ProcessError: the other processes do not come.
    """
    rank, world = place()
    chosen = pick_device(device)
    if world == 1:
        yield Processes(rank, world, chosen)
        return
    joined = not distributed.is_initialized()
    if joined:
        _join(rank, world)
    group = distributed.new_group(None, _PATIENCE, "gloo")
    try:
        yield Processes(rank, world, chosen, group)
    finally:
        distributed.destroy_process_group(None if joined else group)


def place() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun says; else (0, 1).

    Raises:
        ValueError: only one of ``RANK`` and ``WORLD_SIZE`` is set, or they make no sense.
    """
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    there = [name for name, value in said.items() if value is not None]
    if not there:
        return 0, 1
    if len(there) == 1:
        (missing,) = said.keys() - there
        raise ValueError(
            f"{there[0]}={said[there[0]]} is set in the environment but {missing} is not; torchrun "
            f"sets both: start with it, or unset {there[0]}"
        )
    rank, world = (_number(name) for name in said)
    if not 0 <= rank < world:
        raise ValueError(f"RANK must lie in 0..{world - 1} where WORLD_SIZE={world}, got {rank}")
    return rank, world


def pick_device(name: str = "auto") -> torch.device:
    """A device that is there.

    Args:
        name: such as ``"cpu"`` or ``"cuda:1"``; ``"auto"`` is this process's own GPU (torchrun
            numbers the processes of a machine), and the CPU where torch sees no GPU.

    Raises:
        ValueError: this machine or this build of torch has no such device, or torchrun started more
            processes here than there are GPUs.
    """
    if name == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.empty(0, device=name).device
    except Exception as error:  # an AssertionError, RuntimeError or AcceleratorError
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"device {name!r} cannot be used here: {reason}; 'cpu' can.") from None
    if device.type == "meta":
        raise ValueError(f"device {name!r} cannot be used here: it holds no numbers; 'cpu' can.")
    return device


def _own_gpu() -> torch.device:
    if place()[1] == 1 and "LOCAL_RANK" not in os.environ:
        return torch.device("cuda:0")
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "LOCAL_RANK is not set in the environment, so which GPU is this process's own is not "
            "known; torchrun sets it"
        )
    local, there = _number("LOCAL_RANK"), torch.cuda.device_count()
    if not 0 <= local < there:
        raise ValueError(
            f"LOCAL_RANK={local}, and this machine has {there} GPUs: give torchrun "
            f"--nproc_per_node={there}, or every process the same device by name"
        )
    return torch.device(f"cuda:{local}")


def _join(rank: int, world: int) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(
                f"WORLD_SIZE={world} is set in the environment but {name} is not, so {world} "
                "processes cannot meet; torchrun sets both"
            )
    try:
        store, *_ = next(rendezvous("env://"))
        # A name of its own for every meeting of one program: in torchrun's store the addresses of
        # the last one are still to be found, where nobody listens any more.
        fresh = PrefixStore(f"deqgen-{next(_MEETINGS)}", store)
        distributed.init_process_group("gloo", store=fresh, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ProcessError(f"the {world} processes of this run did not meet: {reason}") from error


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {os.environ[name]!r}") from None


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, about a pair of sockets
        raise ProcessError(
            "another process of this run has ended; its own message says why"
        ) from error


def _check_plain(value: object) -> None:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            _check_plain(part)
    elif not (value is None or type(value) in (bool, int, float, str) or type(value) is Tensor):
        raise TypeError(
            "processes exchange tensors, numbers, strings, None, and lists, tuples and dicts of "
            f"these; got {type(value).__name__}"
        )


def _packed(value: object) -> Tensor:
    """(bytes,) uint8."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)


def _unpacked(content: Tensor) -> Any:
    return torch.load(io.BytesIO(content.numpy().tobytes()), "cpu", weights_only=True)
