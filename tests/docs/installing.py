"""``pip install`` on a page: nothing is installed, but what it names must be ours or needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z][\w.-]*|\.)(?:\[(?P<extras>[\w,-]+)\])?(?P<rest>.*)")
_WITH_VALUE = ("-c", "-r", "--constraint", "--requirement", "--index-url", "--extra-index-url")


def check_pip(words: list[str], at: str) -> None:
    """Check a ``pip install``: extras exist, other packages are dependencies of ours.

    Raises:
        AssertionError: they do not.
    """
    assert words[0] == "install", at
    rest = iter(words[1:])
    project = _project()
    for word in rest:
        if word in _WITH_VALUE:
            value = next(rest)
            assert "://" in value or (REPOSITORY / value).exists(), at
            continue
        if word.startswith("-"):
            continue
        found = _REQUIREMENT.fullmatch(re.sub(r"\s*@.*|git\+\S+/", "", word))
        assert found is not None, at
        if found["name"] in (".", "deqgen"):
            extras = set((found["extras"] or "").split(",")) - {""}
            assert extras <= set(project["optional-dependencies"]), f"{at}\nhas no such extra"
        else:
            assert found["name"] in _needed(project), f"{at}\nwe do not depend on {found['name']}"


def _project() -> dict[str, dict[str, list[str]]]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    text = Path(REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, dict[str, list[str]]] = tomllib.loads(text)["project"]
    return project


def _needed(project: dict[str, dict[str, list[str]]]) -> set[str]:
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return {re.split(r"[^\w.-]", line)[0] for line in wanted} | {"torch"}
