"""What the average of the weights costs beside the step that it follows; the goal is below 1%.

The step is forward, loss, backward, clipping and AdamW of a batch in memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import training_step
from timing import interleaved
from training_step import Bare, make_pairs

from deqgen.models import parameter_count
from deqgen.training.ema import Ema


def average(rounds: int) -> list[dict[str, Any]]:
    """Measure both in turn."""
    with tempfile.TemporaryDirectory() as name:
        step = Bare(make_pairs(Path(name)))
        ema = Ema(step.model, half_life=887_000, ramp=0.0)
        times = interleaved(
            {"step": step, "ema": lambda: ema.update(step.model, 10**6, training_step.BATCH)},
            rounds,
            100,
        )
    return [
        {
            "model": training_step.MODEL,
            "parameters": parameter_count(step.model),
            "batch": training_step.BATCH,
            "step, ms": 1000 * times["step"],
            "average, ms": 1000 * times["ema"],
            "%": 100 * times["ema"] / times["step"],
        }
    ]
