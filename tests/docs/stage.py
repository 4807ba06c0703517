"""Where a page is played: its code and its commands, in order, in one folder."""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import tyro

from deqgen import cli, gradients, models, teachers
from deqgen_solvers import registry as solvers
from tests.docs.commands import Command, commands, is_command, parse, spans
from tests.docs.installing import check_pip
from tests.docs.launching import behind_launcher, make_recipe
from tests.docs.pages import HERE, REPOSITORY, Block, Page
from tests.docs.table import CODE, LONG, NO_COMMAND, NOT_RUN
from tests.docs.world import World
from tests.examples.running import here

WRITTEN = {"make": 0, "merge": 0, "import-get": 1, "convert-edm": 1, "convert-get": 1} | {
    name: 1 for name in ("cifar10", "imagenet64", "folder", "stats")
}
"""subcommand -> which of its positional arguments it writes."""


class Stage:
    """One page and the folder that it is played in, which is the working directory.

    Args:
        page: what is played.
        world: has the files that the page takes for granted.
        folder: empty at first.
        earnest: start torchrun, two processes, which takes ten seconds a time; else what it would
            start runs here, in one process.
    """

    def __init__(self, page: Page, world: World, folder: Path, *, earnest: bool = False) -> None:
        self.page, self.world, self.folder, self.earnest = page, world, folder, earnest
        name = re.sub(r"\W", "_", page.name)
        self.module = ModuleType(f"page_{name}")

    def play(self) -> None:
        """Everything, in order.

        Raises:
            AssertionError: a command failed, a block printed something else, or nobody knows how
                to run it; the message names the line.
        """
        printed = ""
        with patch.dict(sys.modules, {self.module.__name__: self.module}), registries():
            for block in self.page.blocks():
                if block.language == "python":
                    printed = self.code(block)
                elif block.language == "text":
                    if block.after == "python":
                        shown, found = _tidy(block.text), _tidy(printed)
                        at = self.at(block.line)
                        assert found == shown, f"{at} shows another output than\n{printed}"
                elif block.language == HERE:
                    self.table(block)
                else:
                    self.known(block)
                    for command in commands(block):
                        self.command(command)

    def known(self, block: Block) -> None:
        """Refuse a language that nobody runs and the table does not excuse."""
        language = block.language
        known = language in ("", "console", "bash", "sh", "shell", *NO_COMMAND)
        assert known or language.startswith("{"), f"{self.at(block.line)}: {language} is not run"

    def table(self, block: Block) -> None:
        """Run what a table says is done here: commands, their options, expressions in Python.

        An option is one of the last command above it in the table.
        """
        begun: list[str] = []
        for line, span in spans(block):
            if is_command(span):
                command = parse(span, line)
                self.command(command)
                begun = list(command.words[1:]) if command.words[0] == "deqgen" else begun
            elif span.startswith("--"):
                assert begun, f"{self.at(line)}: no command stands above {span}"
                assert callable(cli._parsed([*begun, *shlex.split(span)])), self.at(line)
            elif "(" in span:
                self.code(Block("python", f"_ = {span}\n", line, ""))

    def at(self, line: int) -> str:
        return f"{self.page.name}:{line}"

    def code(self, block: Block) -> str:
        """Run a block of Python; return what it prints."""
        text = block.text
        for pattern, little in CODE:
            text = re.sub(pattern, little, text)
        self.lay_out(files_read(text))
        out = io.StringIO()
        # Empty lines before it: a traceback then shows the line of the page.
        source = "\n" * (block.line - 1) + text
        with redirect_stdout(out):
            exec(compile(source, str(self.page.path), "exec"), self.module.__dict__)
        return out.getvalue()

    def command(self, command: Command) -> None:
        """Run a command, made small; the one on the page must be well formed, too."""
        if command.text in NOT_RUN:
            return
        at = f"{self.at(command.line)}: {command.text}"
        small = command.smaller()
        with patch.dict(os.environ, small.environment):
            self.run(small.words, at)
        if command.words[0] == "deqgen":
            assert callable(cli._parsed(command.words[1:])), at

    def run(self, words: tuple[str, ...], at: str) -> None:
        program, *rest = words
        if program == "pip":
            check_pip(rest, at)
        elif program == "make":
            if recipe := make_recipe(rest, at):
                self.run(recipe, at)
        elif program in ("torchrun", "accelerate"):
            inner = behind_launcher(words, at)
            if self.earnest and program == "torchrun":  # accelerate's --multi_gpu needs some
                self.launch(words, at)
            else:
                self.run(inner, at)
        elif program == "bash":
            assert (REPOSITORY / rest[0]).is_file(), at
        elif program == "deqgen":
            self.deqgen(rest, at)
        elif program == "python":
            self.python(rest, at)
        else:
            raise AssertionError(f"{at}\nis neither run nor listed in tests/docs/table.py")

    def deqgen(self, words: list[str], at: str) -> None:
        self.lay_out(files_of(words))
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = cli.main(words)
            except SystemExit as stop:  # --help
                status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        assert status == 0, f"{at}\nran as {words}\n{err.getvalue()}"

    def python(self, words: list[str], at: str) -> None:
        if words[:2] == ["-m", "deqgen"]:
            return self.deqgen(words[2:], at)
        script, *options = words
        assert (REPOSITORY / script).is_file(), f"{at}\nthere is no {script}"
        self.lay_out(files_of(words))
        with options_only() if script.startswith(LONG) else nullcontext():
            done = here(str(REPOSITORY / script), *options)
        assert done.returncode == 0, f"{at}\nran as {words}\n{done.stderr}"

    def launch(self, words: tuple[str, ...], at: str) -> None:
        inner = behind_launcher(words, at)
        self.lay_out(files_of([*inner[3:]] if inner[1] == "-m" else [*inner]))
        program = Path(sys.executable).with_name(words[0])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, str(program), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{at}\nran as {words}\n{done.stderr}"

    def lay_out(self, names: set[str]) -> None:
        """Put the files there that are read, where the page has not made them."""
        for name in names:
            # Where the page has trained, the folder of the run must have the name that it says.
            if not (name.startswith("runs/") and any(self.folder.glob("runs/0*"))):
                self.world.provide(name, self.folder)


def files_of(words: list[str]) -> set[str]:
    """The words of a command that may name what it reads: not itself, not what it writes."""
    command = words[:2] if words[0] in ("pairs", "data") else words[:1]
    rest = words[len(command) :]
    positional = [word for word in rest if not word.startswith("-")]
    place = WRITTEN.get(command[-1])
    written = set() if place is None else {*positional[place : place + 1]}
    for option, value in pairwise(rest):
        if option in ("--out", "--outdir", "--output-dir"):
            written.add(value)
    return set(rest) - written


def files_read(code: str) -> set[str]:
    """Strings in Python, without those that write_..., save_... and the like write."""
    tree = ast.parse(code)
    found = _strings(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name == "main" and call.args:  # a command line: it reads what the code has made
            found -= _strings(call.args[0])
        if name.startswith(("write", "save", "convert", "import_get", "merge", "export")):
            given = [a.value for a in call.args if isinstance(a, ast.Constant)]
            found -= set(given[:1] if name.startswith("merge") else given[-1:])
    return found


def _strings(tree: ast.AST) -> set[str]:
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in values if isinstance(value, str) and 0 < len(value) < 200}


@contextmanager
def options_only() -> Iterator[None]:
    """A script ends as soon as it has read its options; wrong ones end it as ever."""
    read = tyro.cli

    def stop(*args: Any, **options: Any) -> None:
        read(*args, **options)
        raise SystemExit(0)

    with patch("tyro.cli", stop):
        yield


@contextmanager
def registries() -> Iterator[None]:
    """What a page registers is forgotten after it."""
    with (
        patch.dict(solvers._REGISTERED),
        patch.dict(solvers._REQUIRED),
        patch.dict(gradients.registry._TABLE),
        patch.dict(models.registry._TABLE),
        patch.dict(teachers.registry.TEACHERS),
        patch.dict(teachers.registry.ARCHITECTURES),
    ):
        yield


def _tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
