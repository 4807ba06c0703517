"""Every link of every page leads somewhere, to the heading that it names."""

from __future__ import annotations

import re

import pytest

from deqgen.commands import COMMANDS, Group
from tests.docs.pages import REPOSITORY, Page, pages

TOGETHER = pages()
each_page = pytest.mark.parametrize("page", TOGETHER, ids=[page.name for page in TOGETHER])


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links():
        name, _, anchor = link.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        assert path.exists(), f"{page.name}: {link} leads nowhere"
        assert path.is_relative_to(REPOSITORY), f"{page.name}: {link} leads out of the repository"
        if anchor and path.suffix == ".md":
            anchors = Page(path, path.name).anchors()
            assert anchor in anchors, f"{page.name}: {link} is none of {sorted(anchors)}"


@each_page
def test_make_targets_in_sentences_exist(page: Page) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", page.prose()):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@each_page
def test_subcommands_in_sentences_exist(page: Page) -> None:
    for span in re.findall(r"`deqgen ([^`]+)`", page.prose()):
        name, *rest = span.split()
        known = name in COMMANDS or name.startswith("-") or name.isupper()  # a placeholder
        assert known, f"{page.name}: deqgen {span}"
        entry = COMMANDS.get(name)
        if isinstance(entry, Group) and rest and rest[0] != "...":
            assert rest[0] in entry.commands, f"{page.name}: deqgen {span}"


@each_page
def test_pictures_say_what_to_see(page: Page) -> None:
    """A picture's text is what a reader without pictures has, and what a caption begins with."""
    for alternative in re.findall(r"!\[([^\]]*)\]\(", page.prose()):
        assert len(alternative.split()) >= 3, f"{page.name}: ![{alternative}] says nothing"
