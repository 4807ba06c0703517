"""docs/api has every public name, each once; the gallery's programs are short; cards have pages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md")}
DOCUMENTED = [
    name
    for text in PAGES.values()
    for name in re.findall(r"^\.\. auto(?:class|data|exception|function):: (\S+)$", text, re.M)
]
GALLERY = sorted((REPOSITORY / "examples" / "gallery").glob("plot_*.py"))


def packages() -> list[str]:
    """Every package that says what is public."""
    found = []
    for root in (importlib.import_module("deqgen"), importlib.import_module("deqgen_solvers")):
        names = [info.name for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]
        modules = [root, *map(importlib.import_module, names)]
        found += [m.__name__ for m in modules if hasattr(m, "__path__") and hasattr(m, "__all__")]
    return found


def named(name: str) -> Any:
    """The object of a dotted name."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("package", packages())
def test_every_public_name_is_documented(package: str) -> None:
    there = [named(name) for name in DOCUMENTED]
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    missing = [
        name
        for name, value in public.items()
        if not inspect.ismodule(value)
        and f"{package}.{name}" not in DOCUMENTED
        and not any(value is other for other in there)
    ]
    assert missing == [], "add them to a page of docs/api"


def test_a_public_object_is_documented_once() -> None:
    places = [(value.__module__, value.__qualname__) for value in _classes_and_functions()]
    assert sorted({p for p in places if places.count(p) > 1}) == []


def _classes_and_functions() -> list[Any]:
    values = [named(name) for name in DOCUMENTED]
    return [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]


def test_every_page_of_the_api_is_listed() -> None:
    listed = re.findall(r"^(\w+)$", PAGES["index.md"], re.M)
    assert sorted(f"{name}.md" for name in listed) == sorted(PAGES.keys() - {"index.md"})


def test_every_model_card_has_a_page() -> None:
    cards = {path.name for path in (REPOSITORY / "deqgen" / "assets").glob("*.md")}
    assert cards == {path.name for path in (DOCS / "cards").glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.name)
def test_a_program_of_the_gallery_is_short_and_says_what_to_see(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert text.count("plt.show()") == 1, "one idea, one picture"
    assert "# **What to see.**" in text.partition("plt.show()")[2]


def test_there_are_programs_in_the_gallery() -> None:
    assert 6 <= len(GALLERY) <= 12


@pytest.mark.parametrize("folder", [p.name for p in (DOCS / "results").iterdir() if p.is_dir()])
def test_results_are_shown(folder: str) -> None:
    assert re.search(rf"\({folder}/[\w.-]+\)|{{figure}} {folder}/", _results())


def _results() -> str:
    return (DOCS / "results" / "index.md").read_text(encoding="utf-8")


def test_pictures_have_captions() -> None:
    for path in [DOCS / "index.md", DOCS / "results" / "index.md"]:
        figures = re.findall(r":::\{figure\} .*?:::", path.read_text(encoding="utf-8"), re.S)
        assert figures
        for figure in figures:
            assert len(re.sub(r":::.*|:\w+:.*", "", figure).strip()) > 60, figure
