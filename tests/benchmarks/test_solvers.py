"""The benchmarks run and measure what they say, on the smallest of their problems."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from deqgen_solvers import problems


def test_what_a_step_costs(load) -> None:
    step: ModuleType = load("solver_step")
    theirs, ours = step.METHODS["anderson"]
    cost = step.step_cost(2, 8, theirs, ours["anderson"], rounds=3)
    assert cost["f"] > 0
    assert cost["ratio"] == cost["torchdeq"] / cost["deqgen"] > 0


def test_evaluations_are_those_of_the_problem(load) -> None:
    count: ModuleType = load("solver_evaluations")
    for name in ("constant", "contraction 0.5"):
        problem = problems.make_problem(name)
        for programs in count.METHODS.values():
            found = {library: count.evaluations(run, problem) for library, run in programs.items()}
            assert found["deqgen"] <= found["torchdeq"]
            assert abs(found["deqgen"] - found["scipy"]) <= 1
            assert name != "constant" or set(found.values()) == {1}


def test_a_method_that_fails_has_no_count(load) -> None:
    count: ModuleType = load("solver_evaluations")
    problem = problems.make_problem("contraction 0.999")
    assert count.evaluations(count.METHODS["anderson"]["torchdeq"], problem) is None


def test_peak_memory_is_that_of_the_tensors(load) -> None:
    memory: ModuleType = load("solver_memory")
    # z, f(z), the proposal, its image, their difference: 4 bytes each.
    assert 18 <= memory.measure_in_a_process("picard", "picard") <= 25


def test_a_mixed_batch(load, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: ModuleType = load("solver_mixed")
    monkeypatch.setattr(mixed, "BATCH", 4)
    monkeypatch.setattr(mixed, "BATCHES", {"mixed": 1})
    for row in mixed.mixed_batches(rounds=1):
        assert row["steps, least"] < row["steps, most"] <= mixed.MAX_STEPS
        assert row["ratio"] == row["torchdeq"] / row["deqgen"] > 0


def test_results_are_printed_and_written(
    load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solvers: ModuleType = load("solvers")
    rows = [{"method": "picard", "ratio": 1.0 / 3, "steps": None}]
    monkeypatch.setitem(solvers.PARTS, "mixed", lambda _rounds: rows)
    output = tmp_path / "new" / "numbers.json"
    solvers.main(solvers.Options(parts=("mixed",), output=output))
    printed = capsys.readouterr().out
    assert "| picard | 0.333 | -     |" in printed
    assert output.with_suffix(".md").read_text() in printed
    assert json.loads(output.read_text())["mixed"] == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("stepp",)}, "unknown part 'stepp'; there are step, evaluations, memory, mixed"),
        ({"rounds": 0}, "--threads and --rounds must be at least 1"),
    ],
)
def test_a_wrong_option_is_one_sentence(load, options: dict[str, object], message: str) -> None:
    solvers: ModuleType = load("solvers")
    with pytest.raises(SystemExit, match=message):
        solvers.main(solvers.Options(**options))
