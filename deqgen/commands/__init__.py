"""The subcommands of ``deqgen``, by name.

Mental model, in five lines:
1. One function is one command: its signature is its options, its docstring their help.
2. A :class:`Group` is a command of commands, such as ``deqgen pairs make``.
3. A file holds the commands of one subject; add yours to ``COMMANDS`` and it is there.
4. A command imports what is heavy inside, so that help is quick.
5. It raises what the library raises; :mod:`deqgen.cli` makes one sentence and an exit status of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deqgen.commands import data, pairs
from deqgen.commands.distill import distill
from deqgen.commands.evaluate import evaluate
from deqgen.commands.models import cite, convert_get, list_names
from deqgen.commands.sample import sample
from deqgen.commands.teachers import convert_edm

Command = Callable[..., None]


@dataclass(frozen=True)
class Group:
    """Commands under one name.

    Args:
        help: one line that says what they are about.
        commands: by name.
    """

    help: str
    commands: Mapping[str, Command]


COMMANDS: Mapping[str, Command | Group] = {
    "cite": cite,
    "convert-edm": convert_edm,
    "convert-get": convert_get,
    "data": Group("Make image archives in EDM's layout, and statistics of them.", data.COMMANDS),
    "distill": distill,
    "evaluate": evaluate,
    "list": list_names,
    "pairs": Group("Make, check, merge and import noise/image pairs.", pairs.COMMANDS),
    "sample": sample,
}
