"""The gradient benchmark runs and measures what it says, on the smallest of its problems."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deqgen.gradients import EquilibriumWarning, Implicit, Unrolled
from deqgen.memory import peak_memory
from tests.solvers.torchdeq_cases import torchdeq_with_ours


@pytest.fixture(autouse=True)
def quiet() -> None:
    torchdeq_with_ours()  # imported once, in the way that raises no warning


def tiny(block: ModuleType) -> Any:
    return block.problem(2, "GET-N/2", image_size=8, width=64, heads=2)


@pytest.mark.parametrize("half", [False, True])
def test_all_programs_run_and_checkpointing_saves_memory(load, half: bool) -> None:
    block: ModuleType = load("gradient_block")
    given, peaks = tiny(block), {}
    for estimator, libraries in block.programs(6).items():
        for library, program in libraries.items():
            for tensor in (*given[0].parameters(), *given[2]):
                tensor.grad = None
            run = partial(block.backward, program, given, half)
            run()
            assert all(float(u.grad.abs().max()) > 0 for u in given[2])
            peaks[estimator, library] = peak_memory(run)
    for library in ("deqgen", "torchdeq"):
        plain, saving = peaks["unrolled", library], peaks["unrolled, checkpoint", library]
        assert saving < plain


def test_a_line_of_the_table(load) -> None:
    block: ModuleType = load("gradient_block")
    times = {"unrolled/deqgen": 1.0, "unrolled/torchdeq": 2.0, "shine/deqgen": 0.5}
    memory = {f"shine/deqgen/{steps}": 7.0 for steps in (block.STEPS, block.MANY)}
    line = block.costs("float32", "shine", times, memory)
    assert line["deqgen, x unrolled"] == 0.5 and line["deqgen, MiB"] == 7.0
    assert line["ratio"] is None and line["torchdeq, MiB"] is None


def test_work_is_counted_with_its_backward_pass(load) -> None:
    """An unrolled step costs three evaluations, a product in the adjoint solve about one."""
    block, error = load("gradient_block"), load("gradient_error")
    cell, z0, u = tiny(block)
    given = cell.double(), z0.double(), [leaf.detach().double() for leaf in u]
    unit = error.flops(lambda: given[0](given[1], *given[2]))
    work = {k: error.gradient(block.ours(Unrolled(k), error.ANDERSON), given)[1] for k in (2, 3)}
    assert math.isclose((work[3] - work[2]) / unit, 3, rel_tol=0.02)
    steps = {
        k: error.gradient(block.ours(Implicit(tol=None, max_steps=k), error.ANDERSON), given)[1]
        for k in (2, 3)
    }
    assert math.isclose((steps[3] - steps[2]) / unit, 1, rel_tol=0.2)


def test_errors_fall_along_a_series_and_are_drawn(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    block, error = load("gradient_block"), load("gradient_error")
    monkeypatch.setattr(error, "problem", lambda *_args, **_options: tiny(block))
    series = {k: v for k, v in error.series().items() if k in ("unrolled", "implicit, gmres")}
    monkeypatch.setattr(error, "series", lambda: series)
    rows = error.error_against_cost(1)
    for name in series:
        found = [row for row in rows if row["estimator"] == name]
        assert found[-1]["error"] < 1e-2 < found[0]["error"]
        assert found[-1]["cost"] > found[0]["cost"]
    error.draw(rows, tmp_path / "error.png")
    assert (tmp_path / "error.png").stat().st_size > 10_000


def test_the_mixed_batch_is_measured_at_equal_error(load, monkeypatch: pytest.MonkeyPatch) -> None:
    solver_mixed, mixed = load("solver_mixed"), load("gradient_mixed")
    monkeypatch.setattr(solver_mixed, "BATCH", 4)
    monkeypatch.setattr(mixed, "BATCHES", {"mixed": 1})
    for row in mixed.mixed_gradients(1):
        assert row["ratio"] == row["torchdeq, ms"] / row["deqgen, ms"] > 0
        assert row["deqgen, error"] < 2 * row["torchdeq, error"] < 1e-2
        assert mixed.RTOL / 16 <= row["deqgen, rtol"] <= mixed.RTOL


def test_a_failed_solve_is_not_measured_in_silence(load) -> None:
    mixed: ModuleType = load("gradient_mixed")
    with pytest.warns(EquilibriumWarning, match="missed its tolerance"):
        mixed.gradient(mixed.ours("anderson", max_steps=2), 1)
