"""Models beside the same blocks driven by torchdeq, in one process: time, and the floor.

    python benchmarks/models.py --rounds 3 --parts eager     # twenty minutes on one thread
    python benchmarks/models.py --rounds 3                   # more than an hour: it compiles, too

With glibc, begin the line with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184: the process
then keeps the memory that it was given. Else each large tensor is mapped anew, page by page, which
takes up to a fifth of a step and a different share each time.

Parts: ``eager``, ``compiled`` (the same under torch.compile, which takes minutes to compile), and
``noise`` (torchdeq beside itself: how far from 1 a ratio comes by chance).
The tables are printed, and written as Markdown beside a JSON file. Ratios above 1 favour us.
"""

from __future__ import annotations

from functools import partial

import tyro
from model_speed import beside_itself, speeds
from report import Options, Parts, report

PARTS: Parts = {"eager": speeds, "compiled": partial(speeds, compiled=True), "noise": beside_itself}


def main(options: Options) -> None:
    """Measure, print and write."""
    report("models", "deqgen.models beside torchdeq", PARTS, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
