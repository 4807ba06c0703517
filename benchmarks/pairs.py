"""The pair store: what it adds to a teacher, how fast it reads, what it keeps in memory.

    python benchmarks/pairs.py                  # all parts, one thread; about two minutes
    python benchmarks/pairs.py --parts read     # one of them

Parts: ``write`` (a teacher that costs nothing, and the steps of the writer one by one), ``read``
(random batches beside plain numpy memory maps of the same data), ``memory`` (of a reader of a
million pairs), ``teacher`` (images a second of the embedded one, in float32 and bfloat16, eager and
compiled). The tables are printed, and written as Markdown beside a JSON file. Pairs are those
of CIFAR-10, 3x32x32; files go to the system's temporary folder (``TMPDIR``).
"""

from __future__ import annotations

import tyro
from pairs_memory import reader_memory
from pairs_read import random_reads
from pairs_teacher import teacher_rates
from pairs_write import writer_rates
from report import Options, Parts, report

PARTS: Parts = {
    "write": writer_rates,
    "read": random_reads,
    "memory": reader_memory,
    "teacher": teacher_rates,
}


def main(options: Options) -> None:
    """Measure, print and write."""
    report("pairs", "deqgen.data's pair store", PARTS, options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
