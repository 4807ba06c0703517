"""The ``deqgen`` command; ``python -m deqgen`` is the same.

What it can do is in :mod:`deqgen.commands`; here is how a command line is read and how it ends.
"""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from deqgen.commands import COMMANDS, Command, Group

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130

# torchrun kills all processes as soon as it has seen one of them fail, so those that are silent
# about a mistake give the one that tells of it time to catch up with them.
HEAD_START = 2.0  # seconds

# A path that is wrong is a mistake like a name that is wrong, and where there is no network (a
# ConnectionError, as DownloadError is) a traceback would tell nothing; a full disk is none.
_MISTAKES = (
    ValueError,
    TypeError,
    ConnectionError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class OptionError(ValueError):
    """An option that is unknown, or has a value that it cannot have."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; default: those of the process.

    Returns:
        The exit status: 0, or 2 for a mistake of the user's or a download that failed and 1 for any
        other failure, all with a sentence on stderr, or 130 after Ctrl-C.
        ``DEQGEN_TRACEBACK=1`` lets errors through.
    """
    try:
        _parsed(arguments)()
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        print(f"deqgen: {stop if str(stop) else 'interrupted.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILURE
    except Exception as error:
        if os.environ.get("DEQGEN_TRACEBACK"):
            raise
        return _told(error)
    return 0


def _parsed(arguments: Sequence[str] | None) -> Callable[[], None]:
    """The subcommand asked for, with its options; it has yet to run."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            command: Callable[[], None] = tyro.cli(
                _choice(COMMANDS),
                prog="deqgen",
                description="Deep equilibrium models for generation.",
                args=arguments,
            )
    except SystemExit as stop:
        if stop.code:
            raise OptionError(_unboxed(caught.getvalue())) from None
        raise
    return command


def _choice(commands: Mapping[str, Command | Group]) -> Any:
    """The type whose values are calls of these commands; a group is a choice in it."""
    kinds = [
        Annotated[_choice(entry.commands), subcommand(name=name, description=entry.help)]
        if isinstance(entry, Group)
        else Annotated[Any, subcommand(name=name, constructor=_later(entry))]
        for name, entry in commands.items()
    ]
    # Of one type, Union makes no union, and tyro no subcommand.
    return functools.reduce(operator.or_, [*kinds, Annotated[None, tyro.conf.Suppress]])


def _later(function: Command) -> Callable[..., Callable[[], None]]:
    """A function of the same signature and help that returns the call instead of making it."""

    @functools.wraps(function)
    def bind(*positional: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **options)

    return bind


def _unboxed(text: str) -> str:
    """What tyro says about wrong options, without the frame that it draws around it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours
    # tyro names the dataclass of options that refused a value, but not as the user knows it.
    plain = re.sub(r"Error parsing __tyro-dummy-inner__[\w.]*:", "", plain)
    framed = [line.strip("│| ") for line in plain.splitlines() if line.startswith(("│", "|"))]
    sections = re.split(r"[─-]{8,}", " ".join(framed) or plain)
    if not framed and len(sections) > 1:  # a frame of blanks: its title stands on a line of its own
        del sections[0]
    sentences = [" ".join(section.split()).rstrip(".") for section in sections]
    return ". ".join(sentence for sentence in sentences if sentence) + "."


def _told(error: Exception) -> int:
    """Say what went wrong, on one line; return the exit status.

    Under torchrun all processes have the same options, and one tells of a mistake in them.
    """
    if isinstance(error, OptionError) and os.environ.get("RANK", "0") != "0":
        time.sleep(HEAD_START)
        return MISTAKE
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, _MISTAKES):
        print(f"deqgen: {said}", file=sys.stderr)
        return MISTAKE
    print(
        f"deqgen: {type(error).__name__}: {said} (DEQGEN_TRACEBACK=1 shows where.)", file=sys.stderr
    )
    return FAILURE
