"""Gradient estimators beside torchdeq's, in one process: time, memory, and error against cost.

    python benchmarks/gradients.py                  # all parts, one thread; about half an hour
    python benchmarks/gradients.py --parts error    # one of them

Parts: ``block`` (time and peak memory in float32 and bfloat16) and ``error`` (of the gradient,
against its cost; drawn too), both on the equilibrium blocks of a GET-T/2 with their output halved,
so that they contract; ``mixed`` (implicit, on a batch of easy and hard samples). The tables are
printed, and written as Markdown beside a JSON file. Ratios above 1 favour us.
"""

from __future__ import annotations

import tyro
from gradient_block import block_costs
from gradient_error import draw, error_against_cost
from gradient_mixed import mixed_gradients
from report import Options, Parts, report

PARTS: Parts = {
    "block": block_costs,
    "error": error_against_cost,
    "mixed": mixed_gradients,
}


def main(options: Options) -> None:
    """Measure, print, write and draw."""
    results, path = report("gradients", "deqgen.gradients beside torchdeq", PARTS, options)
    if "error" in results:
        draw(results["error"], path.with_suffix(".png"))
        print(f"drawn in {path.with_suffix('.png')}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
