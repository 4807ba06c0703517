"""deqgen_solvers beside torchdeq, in one process: time, evaluations and memory.

    python benchmarks/solvers.py                  # all parts, one thread; some minutes
    python benchmarks/solvers.py --parts step     # one of them

Parts: ``step`` (cost of a step beyond f), ``evaluations`` (to a tolerance, with scipy), ``memory``
(peak bytes for each number of the state), ``mixed`` (a batch of easy and hard transformer blocks).
The tables are printed, and written as Markdown beside a JSON file. Ratios above 1 favour us.

Letters: B samples, D unknowns of one sample.
"""

from __future__ import annotations

import tyro
from report import Options, Parts, report
from solver_evaluations import count_evaluations
from solver_memory import peak_memory
from solver_mixed import mixed_batches
from solver_step import step_costs

PARTS: Parts = {
    "step": step_costs,
    "evaluations": count_evaluations,
    "memory": peak_memory,
    "mixed": mixed_batches,
}


def main(options: Options) -> None:
    """Measure, print and write."""
    report("solvers", "deqgen_solvers beside torchdeq", PARTS, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
