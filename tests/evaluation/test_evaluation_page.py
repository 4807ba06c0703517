"""docs/evaluation.md: its commands can be parsed, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deqgen import cli
from deqgen.evaluation import METRICS
from deqgen.models import save_model
from tests.evaluation.tiny import tiny_model

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line.partition("  #")[0]
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
]


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_is_one(number: int) -> None:
    words = shlex.split(COMMANDS[number])
    words = words[words.index("deqgen") + 1 :]
    assert callable(cli._parsed(words)), "wrong options raise; nothing runs"


def test_there_are_commands_and_all_metrics() -> None:
    assert len(COMMANDS) == 7
    assert all(f"| `{name}` |" in TEXT for name in METRICS)


@pytest.mark.filterwarnings("ignore::deqgen.evaluation.FewSamplesWarning")
def test_the_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = (block for kind, block in BLOCKS if kind == "python")
    save_model(tiny_model(None, image_size=32, patch_size=8), tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("count=10_000", "count=12"), {})
    assert capsys.readouterr().out.split()[1:] == ["4.0", "0..11"]
