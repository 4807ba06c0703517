"""What a user gets: the wheel and its metadata, the pins, packages that import on their own."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("deqgen", "deqgen_solvers")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
sys.modules["torchvision"] = None  # makes `import torchvision` fail, as where it is missing
for name in {packages!r}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from the source distribution: what either of them lacks is missing here."""
    folder = tmp_path_factory.mktemp("dist")
    # No isolation: hatchling comes with the dev extra, so nothing is downloaded.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), "."]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("deqgen-*-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_wheel_holds_every_module_and_type_marker(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    for package in PACKAGES:
        modules = {
            p.relative_to(REPOSITORY).as_posix() for p in (REPOSITORY / package).rglob("*.py")
        }
        assert modules, f"no module in {package}/"
        assert modules | {f"{package}/py.typed"} <= held


def test_wheel_holds_every_asset_whole(wheel: zipfile.ZipFile) -> None:
    """Hatchling leaves out what .gitignore matches, weights too, without a word."""
    assets = sorted((REPOSITORY / "deqgen" / "assets").iterdir())
    assert {".safetensors", ".json", ".md"} == {path.suffix for path in assets}
    for path in [*assets, REPOSITORY / "deqgen" / "references.bib"]:
        assert wheel.read(path.relative_to(REPOSITORY).as_posix()) == path.read_bytes()


def test_wheel_holds_nothing_but_the_packages(wheel: zipfile.ZipFile) -> None:
    roots = {name.split("/")[0] for name in wheel.namelist()}
    (info,) = (root for root in roots if root.endswith(".dist-info"))
    assert roots == {*PACKAGES, info}
    assert any(
        name.startswith(f"{info}/") and name.endswith("LICENSE") for name in wheel.namelist()
    )


def test_metadata_names_python_licence_and_extras(metadata: Message) -> None:
    assert metadata["Name"] == "deqgen"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "dev",
        "docs",
        "demo",
        "diffusers",
        "export",
        "perceptual",
        "tensorboard",
    }
    core = {canonicalize_name(r.name) for r in requirements(metadata) if r.marker is None}
    assert core == {
        *("torch", "torchdeq", "numpy", "scipy", "safetensors", "huggingface-hub", "accelerate"),
        *("tyro", "pillow", "tqdm", "matplotlib", "fsspec"),
    }


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt")]
    assert "[console_scripts]\ndeqgen = deqgen.cli:main" in wheel.read(name).decode()


def test_constraints_pin_every_requirement_exactly(metadata: Message) -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert pin.url is None
        assert [s.operator for s in pin.specifier] == ["=="], pin
    assert "torch==2.13.0" in map(str, pins)

    for wanted in requirements(metadata):
        found = [p for p in pins if canonicalize_name(p.name) == canonicalize_name(wanted.name)]
        assert found, f"{wanted.name} is not in constraints.txt"
        for pin in found:
            (exact,) = pin.specifier
            assert wanted.specifier.contains(exact.version), f"{pin} does not satisfy {wanted}"


def test_version_is_the_same_everywhere(metadata: Message) -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {metadata['Version']}\n" in citation


def test_deqgen_solvers_is_deqgen_dot_solvers() -> None:
    import deqgen
    import deqgen_solvers
    from deqgen import GET, solvers

    assert solvers is deqgen.solvers is deqgen_solvers
    assert isinstance(GET, type)


def test_every_module_imports_where_torchvision_does_not() -> None:
    code = IMPORT_EVERYTHING.format(packages=PACKAGES)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_names_torchvision_in_an_import() -> None:
    """The import test above would not see one inside a function or a try block."""
    folders = [REPOSITORY / name for name in (*PACKAGES, "examples")]
    for path in (p for folder in folders for p in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torchvision" for n in names), f"{path}:{node}"
