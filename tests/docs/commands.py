"""The commands of a page: which lines are one, and what they become to be run in seconds."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace

from tests.docs.pages import HERE, Block, Page
from tests.docs.table import ADDED, SMALLER

STARTERS = ("deqgen", "python", "torchrun", "make", "pip", "accelerate")
SHELLS = ("console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Args:
        text: as printed, on one line, without the comment.
        line: of the page.
        words: what the shell would make of it, without settings of the environment.
        environment: those.
    """

    text: str
    line: int
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def smaller(self) -> Command:
        """The same command on little data, by the table."""
        text = self.text
        for pattern, little in SMALLER:
            text = re.sub(pattern, little, text)
        command = parse(text, self.line)
        for prefix, options in ADDED.items():
            if f" {prefix} " in f" {' '.join(command.words)} ":
                missing = [o for o in options if o.partition(" ")[0] not in command.words]
                words = (*command.words, *shlex.split(" ".join(missing)))
                command = replace(command, words=words)
        return command


def parse(text: str, line: int = 0) -> Command:
    text = re.split(r"\s#", text)[0].strip()
    words, environment = shlex.split(text), {}
    while words and (setting := re.fullmatch(r"([A-Z_][A-Z0-9_]*)=(.*)", words[0])):
        environment[setting[1]] = setting[2]
        del words[0]
    return Command(text, line, tuple(words), environment)


def commands(block: Block) -> list[Command]:
    """The commands in a block of a shell, or of no language where a line begins as one does.

    Of a table, those that its last column shows.
    """
    if block.language == HERE:
        return [parse(span, line) for line, span in spans(block) if is_command(span)]
    begins = re.search(rf"^(?:{'|'.join(STARTERS)}) ", block.text, flags=re.MULTILINE)
    if block.language not in SHELLS and (block.language or not begins):
        return []
    found, number = [], block.line
    lines = iter(block.text.splitlines())
    for line in lines:
        first, whole = number, line.strip().removeprefix("$ ")
        number += 1
        while whole.endswith("\\"):
            whole = f"{whole[:-1].rstrip()} {next(lines).strip()}"
            number += 1
        if not whole or whole.startswith("#"):
            continue
        found.append(parse(whole, first))
    return found


def spans(table: Block) -> list[tuple[int, str]]:
    """Line and text of what stands in backquotes in the last column."""
    return [
        (line, span)
        for line, row in enumerate(table.text.splitlines(), start=table.line)
        for span in re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition(" | ")[2])
    ]


def is_command(text: str) -> bool:
    return text.startswith(tuple(f"{starter} " for starter in STARTERS))


def commands_of(page: Page) -> list[Command]:
    return [command for block in page.blocks() for command in commands(block)]
