"""The page for those who come from torchdeq: its code runs, and it leaves no option out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from tests.solvers.torchdeq_cases import torchdeq_with_ours

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "coming_from" / "torchdeq.md").read_text(encoding="utf-8")


def test_the_page_runs_before_and_after() -> None:
    torchdeq_with_ours()  # imported once, in the way that raises no warning
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    results = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, "torchdeq.md", "exec"), names)
        results.append((names["z"].detach(), names["weight"].grad))
    assert len(results) == 3
    for z, gradient in results[1:]:
        assert torch.allclose(z, results[0][0], rtol=1e-3, atol=1e-3)
        assert torch.allclose(gradient, results[0][1], rtol=1e-2, atol=1e-3)


def test_the_page_names_every_option_of_torchdeq() -> None:
    torchdeq = torchdeq_with_ours()
    core = torchdeq.core

    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    for layer in (core.DEQBase, core.DEQIndexing, core.DEQSliced):
        options = set(inspect.signature(layer.__init__).parameters) - {"self", "kwargs"}
        assert options - named == set()
    for name in ("anderson", "broyden", "fixed_point_iter", "simple_fixed_point_iter"):
        options = set(inspect.signature(torchdeq.solver.get_solver(name)).parameters)
        assert options - {"func", "x0", "kwargs"} - named == set()
