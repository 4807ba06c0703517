"""Who may import whom."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("deqgen_solvers", "deqgen", "examples", "benchmarks", "tests")

# A bridge may import the one library that it leads to, when it is used and not before.
BRIDGES = {"deqgen_solvers/bridges/torchdeq.py": "torchdeq"}


def imported(source: str) -> set[str]:
    """Top-level packages that a file imports, anywhere in it, also by ``import_module("x")``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in ("import_module", "__import__", "importorskip"):
                names.add(str(node.args[0].value).split(".")[0])
    return names


def imported_at_once(source: str) -> set[str]:
    """The same, of what runs when the file itself is imported: function bodies left out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return imported(ast.unparse(tree))


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "source",
    [
        "import a.b",
        "from a import c",
        "def f():\n    from a.b import c",
        "if True:\n    import x, a as y",
        "import importlib\nimportlib.import_module('a.b')",
        "__import__('a')",
    ],
)
def test_the_scan_finds(source: str) -> None:
    assert "a" in imported(source)
    assert "a" not in imported("from .a import b\nfrom . import a\nx = 'import a'")


def test_the_scan_tells_now_from_later() -> None:
    assert imported_at_once("import a\nclass C:\n    def f(self):\n        import b") == {"a"}
    assert imported_at_once("def f(x=__import__('a')):\n    import b") == {"a"}
    assert imported_at_once("if True:\n    import a\nasync def f():\n    import b") == {"a"}


def test_solvers_import_torch_and_nothing_else() -> None:
    paths = {path.relative_to(ROOT).as_posix(): path for path in files("deqgen_solvers")}
    assert len(paths) > 10 and BRIDGES.keys() <= paths.keys()
    allowed = {"torch", "deqgen_solvers", *sys.stdlib_module_names}
    at_once = {name: imported_at_once(path.read_text()) - allowed for name, path in paths.items()}
    later = {
        name: imported(path.read_text()) - allowed - {BRIDGES.get(name)}
        for name, path in paths.items()
    }
    assert {name: found for name, found in at_once.items() if found} == {}
    assert {name: found for name, found in later.items() if found} == {}


def test_nothing_imports_torchvision() -> None:
    paths = list(files(*FOLDERS))
    assert len(paths) > 20
    assert [p.relative_to(ROOT) for p in paths if "torchvision" in imported(p.read_text())] == []
