"""docs/check_offline.py sees what a browser would fetch, and not what a reader may click."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "check_offline.py"


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script defer="defer" src="https://cdn.example.org/x.js"></script>'),
        ("b.html", '<link rel="stylesheet" type="text/css" href="https://example.org/x.css">'),
        ("c.html", '<link href="//example.org/font.woff2" rel="preload">'),
        ("d.html", '<img alt="badge" src="https://example.org/badge.svg">'),
        ("e.html", "<style>@import 'https://example.org/x.css';</style>"),
        ("f.css", "@font-face { src: url(https://example.org/font.woff2) }"),
    ],
)
def test_a_request_is_found(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    done = check(tmp_path)
    assert done.returncode == 1
    assert "example.org" in done.stdout and name in done.stdout


def test_links_and_own_files_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://example.org">there</a> <script src="_static/x.js"></script>'
        '<link rel="canonical" href="https://example.org/a.html"> <img src="x.png">'
    )
    done = check(tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 pages and styles ask no server for anything\n")


def test_a_folder_without_pages_fails(tmp_path: Path) -> None:
    assert check(tmp_path).returncode == 1
