"""What the trainer adds to a step: loader, statistics, accelerate, average; the goal is below 3%.

"Bare" is forward, loss, backward, clipping and AdamW on one batch in memory. "Trainer" reads its
batch from a set of pairs and writes a row of statistics every step (a run does every few hundred).
Their difference is small beside the noise of either; so the last rows are of a model that costs
nothing, where next to nothing but the trainer is left, and of the loader alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import training_step
from timing import interleaved
from training_step import Bare, Free, Trained, make_pairs, student


def overhead(rounds: int) -> list[dict[str, Any]]:
    """Measure a step in both ways, and what is left of it without a model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = make_pairs(folder)
        steps = interleaved(
            {"bare step": Bare(pairs), "trainer's step": Trained(student(), pairs, folder / "a")},
            rounds,
            seconds=150,
        )
        chosen = np.random.default_rng(0).permutation(len(pairs))[: training_step.BATCH].tolist()
        around = interleaved(
            {
                "trainer's step, free model": Trained(Free(), pairs, folder / "b"),
                "loader alone": lambda: pairs.__getitems__(chosen),
            },
            100 * rounds,
        )
    bare, trained = steps["bare step"], steps["trainer's step"]
    beyond = {"bare step": None, "trainer's step": trained - bare, **around}
    return [
        {
            "what": what,
            "ms": 1000 * seconds,
            "beyond a bare step, %": None if extra is None else 100 * extra / bare,
        }
        for (what, extra), seconds in zip(
            beyond.items(), [bare, trained, *around.values()], strict=True
        )
    ]
