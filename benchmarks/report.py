"""Run the parts of a benchmark; print their tables and write them."""

from __future__ import annotations

import inspect
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Rows = list[dict[str, Any]]
Parts = Mapping[str, Callable[[int], Rows]]
"""A part measures, with so many rounds, the rows of a table of equal columns."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[str, ...] = ()
    """Some of the parts; default: all."""
    threads: int = 1
    """CPU threads of both libraries."""
    rounds: int = 9
    """Times that each program is run; the median counts."""
    output: Path | None = None
    """JSON file to write; the tables go beside it, as .md. Default: below runs/benchmarks/."""


def report(name: str, headline: str, parts: Parts, options: Options) -> tuple[dict[str, Any], Path]:
    """Measure the parts asked for; a wrong option ends the program with one sentence.

    Returns:
        The results and the JSON file that they were written to.
    """
    unknown = [part for part in options.parts if part not in parts]
    if unknown:
        sys.exit(f"{name}: unknown part {unknown[0]!r}; there are {', '.join(parts)}")
    if options.threads < 1 or options.rounds < 1:
        sys.exit(f"{name}: --threads and --rounds must be at least 1")
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "torchdeq": version("torchdeq"),
        "threads": options.threads,
        "rounds": options.rounds,
    }
    results |= {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    page = f"# {headline}\n\n" + ", ".join(f"{k} {v}" for k, v in results.items())
    print(page)
    for part in options.parts or parts:
        rows = results[part] = parts[part](options.rounds)
        function = getattr(parts[part], "func", parts[part])  # of a partial
        title = (inspect.getdoc(inspect.getmodule(function)) or "").splitlines()[0]
        section = f"\n{part}: {title}\n\n{table(rows)}"
        print(section)
        page += "\n" + section
    output = options.output or Path("runs/benchmarks") / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    print(f"\nwritten to {output} and {output.with_suffix('.md').name}")
    return results, output


def table(rows: Rows) -> str:
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
