"""The ``deqgen`` command: what it prints, and how it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deqgen
from deqgen import cli
from deqgen.commands import Group
from deqgen.models import GenerativeModel, load_model
from tests.models.released import checkpoint
from tests.models.test_behaviour import small

REPOSITORY = Path(__file__).resolve().parents[1]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr: one sentence on one line, and nothing to stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("deqgen: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_convert_get_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path / "a.pth"), tmp_path / "new" / "get.safetensors"
    assert cli.main(["convert-get", str(path), str(out), "--heads", "4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{out}: GET, 8x8, 5 classes, 67,148 parameters, from 'ema'")
    assert load_model(out).config == small().config


def test_convert_get_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "a.pth", "ViT", num_classes=None)
    arguments = ["convert-get", str(path), str(tmp_path / "out"), "--weights", "model"]
    assert cli.main([*arguments, "--heads", "4"]) == 0
    assert "ViT, 8x8, unconditional" in capsys.readouterr().out
    model = GenerativeModel.from_pretrained(tmp_path / "out")
    assert model.config == small("ViT", num_classes=None).config


def test_list_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"models:", "embedded:", "teachers:", "solvers:", "gradients:"} <= set(lines)
    assert {"  GET-B/2+", "  ViT-S/2", "  get-nano-cifar10"} <= set(lines)
    assert {"  anderson", "  unrolled", "  cifar10-small"} <= set(lines)


def test_list_by_pattern_and_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "get-t*"]) == 0
    names = [f"  GET-T/{patch}" for patch in (1, 2, 4, 8)]
    assert capsys.readouterr().out.splitlines() == ["models:", *names]
    assert cli.main(["list", "anderson*", "--kind", "solvers"]) == 0
    assert capsys.readouterr().out.splitlines() == ["solvers:", "  anderson", "  anderson-type-1"]
    assert cli.main(["list", "*SMALL", "--kind", "teachers"]) == 0
    assert capsys.readouterr().out.splitlines() == ["teachers:", "  cifar10-small"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], f"Expected one of {{{', '.join(cli.COMMANDS)}}}"),
        (["lst"], f"Unrecognized options: lst. Available subcommands: {', '.join(cli.COMMANDS)}"),
        (["list", "XYZ*"], "among the models, embedded, teachers, solvers, gradients matches"),
        (["list", "GET*", "--kind", "solvers"], "nothing among the solvers matches 'GET*'"),
        (["list", "--kind", "teapots"], "'teapots'"),
        (["convert-get"], "CHECKPOINT"),
        (["convert-get", "none.pth", "out"], "there is no checkpoint at none.pth"),
        (["convert-get", "none.pth", "out", "--wieghts", "ema"], "Perhaps you meant: --weights"),
        (
            ["convert-get", "none.pth", "out", "--weights", "opt"],
            "Expected one of ('ema', 'model')",
        ),
        (["convert-get", "none.pth", "out", "--heads", "x"], "invalid literal for int()"),
        (["convert-get", "none.pth", "out.pth"], "a .safetensors file or a folder; got 'out.pth'"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert says in told(capsys)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistake_is_one_sentence_in_every_terminal(encoding: str) -> None:
    """tyro frames its messages, with other lines where the terminal is no UTF-8."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "40"}
    done = run("-m", "deqgen", "list", "--kind", "x", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("deqgen: ")
    assert done.stderr.endswith(
        "invalid choice 'x' for argument '--kind'. Expected one of ('all', 'models', 'embedded', "
        "'teachers', 'solvers', 'gradients'). For full helptext, run deqgen list --help.\n"
    )
    assert done.stderr.count("\n") == 1


def test_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"hello")
    assert cli.main(["convert-get", str(path), str(tmp_path / "out")]) == 2
    assert "a.pth is damaged, or no file of tensors" in told(capsys)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(number: int = 0) -> None:
        """Fail."""
        raise error

    monkeypatch.setitem(cli.COMMANDS, "fail", fail)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ValueError("too\n  large"), 2, "deqgen: too large\n"),
        (FileNotFoundError(errno.ENOENT, "not here", "x"), 2, "not here: 'x'"),
        (OSError(errno.ENOSPC, "disk full"), 1, "OSError: [Errno 28] disk full (DEQGEN_TRACEBACK"),
        (RuntimeError(), 1, "RuntimeError: RuntimeError"),
        (KeyboardInterrupt(), 130, "deqgen: interrupted.\n"),
    ],
    ids=["mistake", "path", "disk", "silent", "interrupt"],
)
def test_how_a_command_can_end(
    error: BaseException,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, error)
    assert cli.main(["fail", "--number", "3"]) == status
    assert says in told(capsys)


def test_the_traceback_is_there_for_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("oh"))
    monkeypatch.setenv("DEQGEN_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError, match="oh"):
        cli.main(["fail"])


def test_the_first_process_tells_of_an_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All have the same ones; what else goes wrong in another process it tells itself."""
    failing(monkeypatch, FileNotFoundError(errno.ENOENT, "not on this machine", "x"))
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert waits == []
        assert cli.main(["fail", "--numbre", "3"]) == 2
        assert capsys.readouterr().err.count("deqgen: ") == lines
    assert waits == [cli.HEAD_START]  # or torchrun would kill the first before it has spoken
    assert cli.main(["fail"]) == 2
    assert "not on this machine" in told(capsys)
    assert len(waits) == 1


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, **options
    )


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from deqgen import cli; cli.main(['list', '--help'])"
    done = run("-c", f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {code}")
    assert done.returncode == 0, done.stderr
    assert "--kind {all,models,embedded,teachers,solvers,gradients}" in done.stdout
    loaded = done.stdout.split()
    assert "deqgen.cli" in loaded
    assert not {"torch", "huggingface_hub", "deqgen.models"} & set(loaded)


COMMANDS = [
    (name, *inner)
    for name, entry in cli.COMMANDS.items()
    for inner in ([(each,) for each in entry.commands] if isinstance(entry, Group) else [()])
]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words) for words in COMMANDS])
def test_help_is_plain_text(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Docstrings of options are what a terminal shows, so they hold no markup of Sphinx."""
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    shown = capsys.readouterr().out
    assert "usage: deqgen" in shown
    assert "``" not in shown and ":`" not in shown


def test_a_closed_pipe_is_no_error_to_talk_about() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody_reads:
        command = [sys.executable, "-m", "deqgen", "list"]
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=nobody_reads, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_package_gives_its_names_when_asked() -> None:
    assert set(deqgen.__all__) <= set(dir(deqgen))
    for name in deqgen.__all__:
        assert getattr(deqgen, name) is not None
    with pytest.raises(AttributeError, match="module 'deqgen' has no attribute 'nothing'"):
        _ = deqgen.nothing


NAMES = """
import deqgen.solvers.methods.anderson as theirs, deqgen_solvers.methods.anderson as ours
assert ours is theirs
from deqgen.solvers import Anderson
import deqgen, deqgen_solvers
assert deqgen.solvers is deqgen_solvers and Anderson is deqgen_solvers.Anderson
from deqgen import *
assert DEQ is layers.DEQ and solvers is deqgen_solvers and models.GET is GET
"""


def test_names_in_a_fresh_process() -> None:
    done = run("-W", "error", "-c", NAMES)
    assert done.returncode == 0, done.stderr
