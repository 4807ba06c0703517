"""deqgen_solvers beside torchdeq, in one process: time, evaluations and memory.

    python benchmarks/solvers.py                  # all parts, one thread; some minutes
    python benchmarks/solvers.py --parts step     # one of them

Parts: ``step`` (cost of a step beyond f), ``evaluations`` (to a tolerance, with scipy), ``memory``
(peak bytes for each number of the state), ``mixed`` (a batch of easy and hard transformer blocks).
The tables are printed, and written as Markdown beside a JSON file. Ratios above 1 favour us.

Letters: B samples, D unknowns of one sample.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from solver_evaluations import count_evaluations
from solver_memory import peak_memory
from solver_mixed import mixed_batches
from solver_step import step_costs

PARTS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "step": step_costs,
    "evaluations": count_evaluations,
    "memory": peak_memory,
    "mixed": mixed_batches,
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[str, ...] = tuple(PARTS)
    """Any of: step, evaluations, memory, mixed."""
    threads: int = 1
    """CPU threads of both libraries."""
    rounds: int = 9
    """Times that each program is run; the median counts."""
    output: Path = Path("runs/benchmarks/solvers.json")
    """JSON file to write; the tables go beside it, as .md."""


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    cells = [list(rows[0]), *([format_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def format_cell(value: Any) -> str:
    """Three significant digits for a measured number; a dash for none."""
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return "-" if value is None else str(value)


def main(options: Options) -> None:
    """Measure, print and write."""
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        sys.exit(f"solvers: unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.threads < 1 or options.rounds < 1:
        sys.exit("solvers: --threads and --rounds must be at least 1")
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "torchdeq": version("torchdeq"),
        "threads": options.threads,
        "rounds": options.rounds,
    }
    page = "deqgen_solvers beside torchdeq: " + ", ".join(f"{k} {v}" for k, v in results.items())
    print(page)
    for part in options.parts:
        rows = results[part] = PARTS[part](options.rounds)
        headline = (sys.modules[PARTS[part].__module__].__doc__ or "").splitlines()[0]
        section = f"\n{part}: {headline}\n\n{table(rows)}"
        print(section)
        page += "\n" + section
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output} and {options.output.with_suffix('.md').name}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
