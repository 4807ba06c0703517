"""Ctrl-C and SIGTERM, taken between two steps instead of in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

TORCHRUN = "TORCHELASTIC_RUN_ID"  # set for the processes that torchrun starts


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved all it needs to go on.

    Attributes:
        signal: SIGINT or SIGTERM.
        exit_code: what a command should end with: 130 after Ctrl-C, as shells have it; 0 after
            SIGTERM, with which a scheduler asks for exactly this.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = signal.Signals(signal_number)

    @property
    def exit_code(self) -> int:
        return 0 if self.signal == signal.SIGTERM else 130


class StopRequest:
    """While active, the first SIGINT or SIGTERM is only noted; the next one acts as ever.

    An exception in the middle of an optimizer step would leave some weights updated and others not.
    Under torchrun later signals do nothing: it passes on to its processes what a scheduler may have
    sent to them already, and ends them itself half a minute later. Signals reach the main thread
    only: elsewhere this does nothing.

    Attributes:
        signal: the one that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if TORCHRUN not in os.environ:
            self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._restore()
