"""log.txt: what was said, warned of and raised, each with its time."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from deqgen.training.run_log import RunLog

STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", re.MULTILINE)


def test_it_says_warns_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    path.write_text("earlier\n")
    shown = warnings.showwarning
    with (
        pytest.warns(UserWarning, match="careful"),  # as others see it too
        pytest.raises(ValueError, match="too large"),
        RunLog(path) as log,
    ):
        log.say("two\nlines")
        warnings.warn("careful", UserWarning, stacklevel=1)
        raise ValueError("too large")
    assert warnings.showwarning is shown
    assert capsys.readouterr().out == "two\nlines\n"
    lines = ["earlier", "two", "lines", "UserWarning: careful", "ValueError: too large"]
    text = path.read_text()
    assert STAMP.sub("", text).splitlines() == lines
    assert len(STAMP.findall(text)) == 4


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = warnings.showwarning
    with RunLog(None) as log:
        log.say("hello")
        assert warnings.showwarning is shown
    assert capsys.readouterr().out == ""
