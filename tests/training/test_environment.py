"""The record of where a run was made."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deqgen.training.environment import (
    add_session,
    describe_checkout,
    describe_environment,
    read_sessions,
)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_it_says_with_what() -> None:
    found = describe_environment(device="cpu", processes=3)
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["accelerate"]
    assert (found["device"], found["processes"]) == ("cpu", 3)
    assert found["threads"] == torch.get_num_threads()
    assert sys.orig_argv[0] in found["command"] and found["started"].endswith("+00:00")
    assert json.loads(json.dumps(found)) == found


def test_each_session_is_kept(tmp_path: Path) -> None:
    add_session(tmp_path, processes=1)
    add_session(tmp_path, processes=2)
    sessions = json.loads((tmp_path / "environment.json").read_text())
    assert [session["processes"] for session in sessions] == [1, 2]


def test_what_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    assert read_sessions(tmp_path) == []
    for text, kept in (('[{"a":', []), ('[{"a": 1}, 3]', [{"a": 1}]), ('"text"', [])):
        path.write_text(text)
        with pytest.warns(UserWarning, match=r"environment\.json is damaged"):
            assert read_sessions(tmp_path) == kept
    with pytest.warns(UserWarning, match="is damaged"):
        add_session(tmp_path)
    assert len(read_sessions(tmp_path)) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    package, installed = checkout / "package", checkout / "env" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "code.py").write_text("a = 1\n")
    git(checkout, "init", "-q")
    git(checkout, "add", "package")
    assert describe_checkout(package) is None  # nothing is committed
    git(checkout, "commit", "-q", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    assert describe_checkout(package) == {"commit": commit, "dirty": False}
    (package / "code.py").write_text("a = 2\n")
    assert describe_checkout(package) == {"commit": commit, "dirty": True}
    assert describe_checkout(installed) is None  # inside a checkout, and no part of it
    assert describe_checkout(tmp_path) is None


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_checkout(Path(__file__).parent) is None
