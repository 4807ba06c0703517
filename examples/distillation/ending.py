"""How a command that can be continued ends: with its result, or with one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from deqgen.training import Interrupted, TrainingDiverged

FORESEEN = ValueError, OSError, ImportError, TrainingDiverged


@contextmanager
def ending(program: str, foreseen: tuple[type[Exception], ...] = FORESEEN) -> Iterator[None]:
    """Let a ``with`` block that fails or is stopped end the process without a traceback.

    Args:
        program: what its sentences begin with.
        foreseen: errors that explain themselves; others keep their traceback.

    Raises:
        SystemExit: 1 with a sentence after such an error; after Ctrl-C 130, as shells have it; for
            a training that was stopped, what :class:`Interrupted` says.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(stop.exit_code if isinstance(stop, Interrupted) else 130)
    except foreseen as error:
        sys.exit(f"{program}: {error}")
