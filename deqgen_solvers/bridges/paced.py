"""A solver that owns its loop, taken one evaluation at a time.

Other libraries offer ``loop(f, z0)``, which calls f when it likes. Here it runs in a thread of its
own that sleeps from the moment it asks for f at some point until the driver, which alone calls f,
hands in the value. So each point that the loop asks for is one step of the driver, and there is
never more than one thread awake.

Letters: B samples, N unknowns of one sample, R <= B rows that the driver still holds.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

import torch
from torch import Tensor

Loop: TypeAlias = Callable[[Callable[..., Tensor], Tensor], object]
"""Runs to its end on f, (B, N) -> (B, N), from z0 (B, N). It may call f as ``f(z, tau=...)``."""


@dataclass(frozen=True)
class PacedState:
    """The State of a paced solver.

    The loop keeps all rows that it began with. When the driver gathers rows, f is evaluated on
    those alone, and for the others the loop gets the value that it got last.
    """

    rows: Tensor  # (R,) which of the loop's rows the driver still holds
    run: PacedLoop


def start(loop: Loop, z0: Tensor) -> PacedState:
    """Begin ``loop`` at ``z0`` (B, N); it sleeps before its first evaluation, that of z0."""
    return PacedState(torch.arange(z0.shape[0], device=z0.device), PacedLoop(loop, z0))


def advance(z: Tensor, fz: Tensor, state: PacedState) -> tuple[Tensor, PacedState]:
    """Hand in ``fz`` = f(z) (R, N) and return the point that the loop asks for next, (R, N).

    A loop that has come to its own end is begun anew at z.
    """
    proposal = state.run.propose(fz, state.rows)
    if proposal is None:
        state = start(state.run.loop, z)
        proposal = state.run.propose(fz, state.rows)
        assert proposal is not None, "a loop must ask for more than its first evaluation"
    return proposal, state


class PacedLoop:
    """One run of a loop. The thread ends with the loop, or when this object is no longer needed."""

    def __init__(self, loop: Loop, z0: Tensor) -> None:
        self.loop = loop
        self._asked: SimpleQueue[Tensor | BaseException | None] = SimpleQueue()
        self._given: SimpleQueue[Tensor | None] = SimpleQueue()
        self._fz = torch.empty_like(z0)  # (B, N) last value of every row; all come with the first
        # The thread must not hold this object, or it would never be let go.
        work = (loop, z0, self._asked, self._given, _Modes(z0))
        Thread(target=_work, args=work, name="paced-solver", daemon=True).start()
        weakref.finalize(self, self._given.put, None)
        self._sleeping = self._wait() is not None  # it asks for f(z0)

    def propose(self, fz: Tensor, rows: Tensor) -> Tensor | None:
        """Answer the loop's question with ``fz`` (R, N); return the next, or None at its end."""
        if not self._sleeping:
            return None
        whole = rows.shape[0] == self._fz.shape[0]
        self._fz = fz if whole else self._fz.index_copy(0, rows, fz)
        self._sleeping = False
        self._given.put(self._fz)
        question = self._wait()
        self._sleeping = question is not None
        return question if question is None or whole else question.index_select(0, rows)

    def _wait(self) -> Tensor | None:
        asked = self._asked.get()
        if isinstance(asked, BaseException):
            raise asked
        return asked


class _Abandoned(BaseException):
    """Unwinds a loop that nobody waits for."""


class _Modes:
    """What torch keeps per thread, as the caller had it."""

    def __init__(self, z: Tensor) -> None:
        self.grad, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.stream = torch.cuda.current_stream(z.device) if z.is_cuda else None

    def entered(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(torch.inference_mode(self.inference))
        stack.enter_context(torch.set_grad_enabled(self.grad))
        if self.stream is not None:
            stack.enter_context(torch.cuda.stream(self.stream))
        return stack


def _work(
    loop: Loop,
    z0: Tensor,
    asked: SimpleQueue[Tensor | BaseException | None],
    given: SimpleQueue[Tensor | None],
    modes: _Modes,
) -> None:
    """Run the loop; whatever it comes to, say so, since the driver waits."""

    def f(z: Tensor, tau: float = 1.0) -> Tensor:
        asked.put(z.clone())  # the loop may write over it later
        fz = given.get()
        if fz is None:
            raise _Abandoned
        return fz if tau == 1 else tau * fz + (1 - tau) * z

    try:
        with modes.entered():
            loop(f, z0)
        asked.put(None)
    except _Abandoned:
        pass
    except BaseException as error:
        asked.put(error)
