"""The numbers on the pages that help to choose are those of the results that they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
SOLVERS = "how_to_choose_a_solver.md"
GRADIENTS = "how_to_choose_a_gradient.md"
ARCHITECTURES = "how_to_choose_an_architecture.md"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = (DOCS / page).read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    table = re.search(r"^\|.*\n\| ?---.*\n((?:\|.*\n)+)", section, flags=re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def results(name: str) -> Any:
    return json.loads((DOCS / "results" / name).read_text(encoding="utf-8"))


def near(cell: str, value: float) -> bool:
    """Whether a cell is the value, rounded to as many digits as are printed."""
    decimals = -int(cell.partition("e")[2] or 0) or len(cell.partition(".")[2])
    return abs(float(cell) - value) <= 0.5 * 10**-decimals * (1 + 1e-9)


def test_evaluations() -> None:
    found = {row["problem"]: row for row in results("solvers/one-thread.json")["evaluations"]}
    columns = ("unknowns", "anderson, deqgen", "broyden, deqgen, 16")
    columns += ("anderson, torchdeq", "broyden, torchdeq")
    for problem, *cells in rows(SOLVERS, "Evaluations to the same accuracy"):
        measured = [found[problem][column] for column in columns]
        assert cells == ["-" if value is None else str(value) for value in measured], problem


def test_steps_and_memory() -> None:
    found = results("solvers/one-thread.json")
    names = {"Picard": "picard", "Anderson": "anderson", "Broyden, 16 pairs": "broyden"}
    names["Broyden, all pairs"] = "broyden, all pairs"
    for title, *cells in rows(SOLVERS, "What a step costs beyond the evaluation"):
        measured = [r["deqgen"] for r in found["step"] if r["method"] == names[title]]
        measured += [r["deqgen"] for r in found["memory"] if r["method"] == names[title]]
        assert all(near(*pair) for pair in zip(cells, measured, strict=True)), title


def test_mixed_batches() -> None:
    found = results("solvers/one-thread.json")["mixed"]
    table = rows(SOLVERS, "Batches of easy and hard samples")
    for (batch, method, steps, *cells), row in zip(table, found, strict=True):
        assert (batch.split(":")[0], method.lower()) == (row["batch"], row["method"])
        assert steps == f"{row['steps, least']} to {row['steps, most']}"
        measured = [row["torchdeq"], row["deqgen"], row["ratio"]]
        assert all(near(*pair) for pair in zip(cells, measured, strict=True)), (batch, method)


def test_early_exit() -> None:
    name = ""
    for title, rtol, *cells in rows(SOLVERS, "How exactly to solve a trained model"):
        name = "deq-unet-t" if title.startswith("DEQ") else "get-n4" if title else name
        found = {row["rtol"]: row for row in results(f"early_exit/{name}.json")}
        row = found[float(rtol.split(",")[0])]
        assert not title or f"{row['images']:,} images" in title
        measured = [row["evaluations"], row["fd_cifar10"]]
        assert all(near(*pair) for pair in zip(cells, measured, strict=True)), (name, rtol)


def test_gradients_of_trained_models() -> None:
    names = {
        "`Unrolled(k)`": "unrolled",
        "`Unrolled(k, checkpoint=True)`": "checkpointed",
        "`Implicit()`, k products": "implicit",
        "`Phantom(5, 0.5)`": "phantom",
        '`Phantom(5, 0.5, "neumann")`': "neumann",
        "`JFB()`": "jfb",
        "`SHINE()`": "shine",
    }
    found = {
        (model, row["estimator"]): row
        for model, budget in (("deq-unet-t", 12), ("get-n4", 6))
        for row in results(f"ablation/{model}/ablation.json")["gradients"]["rows"]
        if row["budget"] == budget
    }
    table = rows(GRADIENTS, "On trained models")
    assert {row[0] for row in table} == {*names}
    for title, *cells in table:
        unet, get = (found[model, names[title]] for model in ("deq-unet-t", "get-n4"))
        measured = [*unet["equilibrium"].values(), 1e3 * unet["seconds"], unet["peak_mib"]]
        assert all(near(*pair) for pair in zip(cells[:4], measured, strict=True)), title
        error, cosine = get["unrolled"].values()
        if cells[4:] == ["exact", "1"]:
            assert error < 1e-12
        else:
            assert near(cells[4], error) and near(cells[5], cosine), title


def test_parallel_sampling() -> None:
    found = {
        (r["method"], r["steps"], r["window"], r["solver"]): r
        for r in results("parallel/one-thread.json")["sampling"]
        if r["tol"] == 0.01
    }
    for title, solver, *cells in rows(SOLVERS, "Sampling a teacher in parallel"):
        method, steps, *window = re.findall(r"Heun|Euler|\d+", title)
        key = method.lower(), int(steps), int(window[0]) if window else None, solver.lower()
        measured = [found[key][name] for name in ("in a row", "serial", "times serial")]
        assert all(near(*pair) for pair in zip(cells, measured, strict=True)), title


def test_sizes_are_those_of_the_zoo() -> None:
    zoo = {row[0]: (row[1], row[4]) for row in rows("models.md", "Sizes")}
    for row in rows(ARCHITECTURES, "Parameters and cost"):
        assert zoo[row[0]] == (row[1], row[2])
        assert zoo[row[3]] == (row[4], row[5])
    text = (DOCS / ARCHITECTURES).read_text(encoding="utf-8")
    assert all(number in text for number in zoo["DEQ-UNet-T"])


@pytest.mark.parametrize("model", ["GET-T/2", "GET-S/2"])
def test_times(model: str) -> None:
    text = (DOCS / ARCHITECTURES).read_text(encoding="utf-8")
    eager = [row for row in results("models/one-thread.json")["eager"] if row["model"] == model]
    lines = re.findall(rf"^\| {model} \| \d+ \|.*$", text, flags=re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        _, batch, precision, step, inference, rate = (c.strip() for c in line.strip("|").split("|"))
        here = {row["what"]: row for row in eager if row["precision"] == precision}
        assert int(batch) == here["training"]["B"]
        assert near(step, here["training"]["deqgen, s"])
        assert near(inference, here["inference"]["deqgen, s"])
        assert near(rate.rstrip("%"), here["training"]["deqgen, % of matrix rate"])


def test_get_against_vit() -> None:
    found = results("scaling/results.json")["runs"]
    table = rows(ARCHITECTURES, "Measured")
    assert len(table) == 4
    for student, *cells in table:
        runs = [r for r in found if r["student"] == student and r["pairs"] == 80_000]
        ends = [run["curve"][-1] for run in runs]
        measured = [1e-6 * runs[0]["parameters"], runs[0]["gmacs"]]
        for key, factor in (("fd_cifar10", 1.0), ("accuracy", 100.0), ("pair_l1", 1.0)):
            measured.append(factor * fmean(end[key] for end in ends))
        pairs = zip(cells, measured, strict=True)
        assert all(near(cell.rstrip("%"), value) for cell, value in pairs), student


def test_students_of_stochastic_teachers() -> None:
    found = results("stochastic_teacher/results.json")["students"]
    for (*_, quality, share), row in zip(
        rows("results/index.md", "Stochastic teachers"), found, strict=True
    ):
        assert near(quality, row["fd_cifar10"])
        assert near(share.partition("%")[0], 100 * row["explained"])


def test_the_demo() -> None:
    found = results("demo/metrics.json")
    keys = {
        "passes": ("nfe", 1.0),
        "milliseconds": ("seconds_per_image", 1e3),
        "parameters": ("parameters", 1e-6),
        "GMACs": ("gmacs", 1.0),
        "L1": ("pair_l1", 1.0),
        "`fd_cifar10`": ("fd_cifar10", 1.0),
        "class": ("accuracy", 100.0),
    }
    for title, *cells in rows("start/flagship.md", "What the numbers say"):
        key, factor = keys[title.split()[0].rstrip(",")]
        models = ("teacher", "get", "vit")[-len(cells) :]
        for model, cell in zip(models, cells, strict=True):
            if cell != "-":
                assert near(cell.rstrip("%"), factor * found[model][key]), (title, model)
