"""Training and evaluation beyond the model: what trainer, average, processes and metrics cost.

    python benchmarks/training.py --rounds 5              # all parts, on two cores; minutes
    python benchmarks/training.py --parts overhead ema    # some of them

Parts: ``overhead`` (loader, statistics and accelerate, as a share of a step), ``ema`` (the average
of the weights, as a share of a step), ``processes`` (two of one thread beside one of two, which
needs two cores), ``evaluation`` (of 10,000 images, beside the feature network alone). The tables
are printed, and written as Markdown beside a JSON file. Files go to the system's temporary folder.
"""

from __future__ import annotations

import tyro
from report import Options, Parts, report
from training_ema import average
from training_evaluation import evaluation
from training_overhead import overhead
from training_processes import processes

PARTS: Parts = {
    "overhead": overhead,
    "ema": average,
    "processes": processes,
    "evaluation": evaluation,
}


def main(options: Options) -> None:
    """Measure, print and write."""
    report("training", "deqgen.training and deqgen.evaluation", PARTS, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
