"""One of the processes that ``training_processes`` starts: train, and print the seconds of a step.

torchrun --standalone --nproc-per-node 2 benchmarks/training_worker.py PAIRS RUN MODEL BATCH STEPS
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from pathlib import Path

from deqgen.data import PairDataset
from deqgen.models import create_model
from deqgen.training import TrainConfig, train
from deqgen.training.distillation import Distillation
from deqgen.training.distributed import make_accelerator
from deqgen.training.stats import read_stats


def main(pairs: str, run: str, model: str, batch: int, steps: int) -> None:
    """Train for so many steps, the first of which warms up."""
    config = TrainConfig(images=batch * steps, batch_size=batch, log_images=batch)
    accelerator = make_accelerator(config)
    objective = Distillation(PairDataset(pairs))
    student = create_model(model, num_classes=10)
    train(student, objective, config, run, accelerator=accelerator, progress=False)
    if accelerator.is_main_process:
        at = [row["seconds"] for row in read_stats(Path(run) / "stats.jsonl")]
        taken = [after - before for before, after in itertools.pairwise(at)]
        print(json.dumps({"seconds": statistics.median(taken)}))


if __name__ == "__main__":
    folder, output, name, size, count = sys.argv[1:]
    main(folder, output, name, int(size), int(count))
