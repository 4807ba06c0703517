"""Names, options and solvers of other packages."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deqgen_solvers import (
    Anderson,
    Broyden,
    OptionError,
    Picard,
    Solver,
    available_solvers,
    make_solver,
    register_solver,
    registry,
    solve,
)


def test_names_and_objects() -> None:
    assert {"anderson", "broyden", "picard"} <= set(available_solvers())
    assert available_solvers() == sorted(available_solvers())
    assert make_solver("anderson", memory=8) == Anderson(memory=8)
    solver = Broyden(memory=3)
    assert make_solver(solver) is solver
    for name in ("anderson", "broyden", "picard"):
        assert isinstance(make_solver(name), Solver)


@pytest.mark.parametrize(
    ("error", "pattern", "call"),
    [
        (ValueError, r"'andersen'\. Did you mean 'anderson'\? Available: \[", ("andersen", {})),
        (ValueError, "Did you mean 'picard'", ("Picard", {})),
        (ValueError, r"'' ?\. ?Available", ("", {})),
        (TypeError, r"no option 'memry'\. Did you mean 'memory'\?", ("broyden", {"memry": 3})),
        (TypeError, r"It has: \['damping'\]", ("picard", {"tau": 0.5})),
        (TypeError, "is built", (Picard(), {"damping": 0.5})),
        (ValueError, r"memory must be at least 1, got 0", ("anderson", {"memory": 0})),
        (TypeError, "memory must be a whole number", ("broyden", {"memory": 2.0})),
        (TypeError, "memory must be a whole number", ("broyden", {"memory": True})),
        (ValueError, "memory must be at least 1", ("broyden", {"memory": -1})),
        (ValueError, r"damping must lie in \(0, 1\]", ("picard", {"damping": 0})),
        (ValueError, r"damping must lie in \(0, 1\]", ("anderson", {"damping": 1.5})),
        (ValueError, r"damping must lie in \(0, 1\]", ("picard", {"damping": float("nan")})),
        (TypeError, "damping must be a real number", ("picard", {"damping": "1"})),
        (ValueError, "ridge must be finite and >= 0", ("anderson", {"ridge": -1e-9})),
        (TypeError, "ridge must be a real number", ("anderson", {"ridge": "auto"})),
    ],
)
def test_mistakes(error: type[Exception], pattern: str, call: tuple[object, dict]) -> None:
    solver, options = call
    with pytest.raises(error, match=pattern):
        make_solver(solver, **options)


def test_options_are_frozen_and_by_keyword() -> None:
    with pytest.raises(AttributeError):
        Anderson().memory = 3
    with pytest.raises(TypeError):
        Anderson(3)


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @register_solver("halfway")
    @dataclass(frozen=True, kw_only=True)
    class Halfway:
        share: float = 0.5

        def init(self, z0: Tensor) -> None:
            return None

        def step(self, f: object, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
            return torch.lerp(z, fz, self.share), None

    assert "halfway" in available_solvers()
    assert make_solver("halfway", share=0.25) == Halfway(share=0.25)
    assert solve(lambda z: -2 * z + 3, torch.zeros(2, 1), solver="halfway").converged.all()
    assert register_solver("halfway")(Halfway) is Halfway  # again is no mistake
    with pytest.raises(OptionError, match="'halfway' is already the name of"):
        register_solver("halfway")(Picard)
    with pytest.raises(OptionError, match="empty"):
        register_solver("")


def test_entry_point_of_another_package(tmp_path: Path) -> None:
    """A package on the path, with metadata as pip writes it, brings a solver along."""
    (tmp_path / "elsewhere.py").write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Plain:\n"
        "    gain: float = 1.0\n"
        "    def init(self, z0): return None\n"
        "    def step(self, f, z, fz, state): return z + self.gain * (fz - z), None\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[deqgen.solvers]\nplain = elsewhere:Plain\nbroken = nowhere:Nothing\n"
    )
    script = (
        "import sys, torch\n"
        "import deqgen_solvers as s\n"
        "assert {'plain', 'broken', 'picard'} <= set(s.available_solvers())\n"
        "assert 'elsewhere' not in sys.modules\n"
        "x = s.solve(lambda z: z / 2 + 1, torch.zeros(1, 1), solver='plain')\n"
        "assert x.converged.all() and s.make_solver('plain', gain=0.5).gain == 0.5\n"
        "try: s.make_solver('plain', gian=1)\n"
        "except TypeError as e: assert \"'gain'\" in str(e)\n"
        "else: raise SystemExit('a misspelt option passed')\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", path + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
