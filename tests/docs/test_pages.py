"""Every command and every block of Python of the documentation runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deqgen.teachers import published
from deqgen.teachers.download import cached_path
from tests.docs.pages import Page, pages
from tests.docs.stage import Stage
from tests.docs.world import World
from tests.solvers.torchdeq_cases import torchdeq_with_ours

PLAYED = [page for page in pages() if page.blocks()]
each_page = pytest.mark.parametrize("page", PLAYED, ids=[page.name for page in PLAYED])
# What a page measures on ten thousand images is measured here on twelve.
pytestmark = [
    pytest.mark.filterwarnings("ignore::deqgen.evaluation.FewSamplesWarning"),
    pytest.mark.timeout(300),
]


@pytest.fixture
def folder(page: Page, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; downloads are there already, in a cache."""
    torchdeq_with_ours()  # imported once, in the way that raises no warning
    monkeypatch.setenv("DEQGEN_CACHE", str(world.root / "cache"))
    for entry in published.PUBLISHED.values():
        there = cached_path(entry.url)
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            world.provide(there.name, there.parent)
    if "inception" in page.text:
        world.provide("inception.pth", world.root)
        monkeypatch.setenv("DEQGEN_INCEPTION", str(world.root / "inception.pth"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@each_page
def test_a_page(page: Page, world: World, folder: Path) -> None:
    Stage(page, world, folder).play()


LAUNCHED = [page for page in PLAYED if re.search(r"^torchrun |`torchrun [^`]", page.text, re.M)]


@pytest.mark.slow
@pytest.mark.parametrize("page", LAUNCHED, ids=[page.name for page in LAUNCHED])
def test_a_page_in_two_processes(page: Page, world: World, folder: Path) -> None:
    Stage(page, world, folder, earnest=True).play()
