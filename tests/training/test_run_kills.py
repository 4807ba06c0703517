"""A run that is killed at any point of its work on files goes on as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deqgen.training import read_stats
from tests.training.toy import same, state
from tests.training.trainee import learn

STRIDE = 5  # operations from one point to the next


def rows(directory: Path) -> list[dict[str, float]]:
    found = read_stats(directory / "stats.jsonl")
    return [{name: row[name] for name in row if name != "seconds"} for row in found]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_between_checkpoint_statistics_and_hooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing that was written
    learn(tmp_path / "whole")
    whole, wanted = state(tmp_path / "whole", without=()), rows(tmp_path / "whole")
    points = 0
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training.trainee"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as trainee:
        assert trainee.stdin is not None and trainee.stdout is not None
        while True:
            run = tmp_path / f"{points}"
            trainee.stdin.write(json.dumps([str(run), 1 + STRIDE * points]) + "\n")
            trainee.stdin.flush()
            status = int(trainee.stdout.readline())
            assert status in (0, -signal.SIGKILL)
            learn(run)
            assert same(state(run, without=()), whole) and rows(run) == wanted
            calls = (tmp_path / f"{run.name}.calls").read_text().split()
            assert sorted(set(calls)) == ["24", "48", "72", "80"] and len(calls) <= 5
            assert not [path for path in run.rglob(".*") if path.name.endswith(".tmp")]
            shutil.rmtree(run)
            if status == 0:
                break
            points += 1
    assert points > 40
