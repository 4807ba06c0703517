"""Numbers that no training can have are refused before it begins."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deqgen.training import TrainConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite, got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite, got nan"),
        ({"weight_decay": math.nan}, "weight_decay must be finite, got nan"),
        ({"weight_decay": -math.inf}, "weight_decay must not be negative, got -inf"),
        ({"ema_ramp": math.inf}, "ema_ramp must be finite, got inf"),
        ({"ema_power": math.nan}, "ema_power must be positive and finite"),
        ({"clip_norm": math.inf}, "clip_norm must be positive and finite"),
        ({"betas": (1.5, 0.9)}, r"betas must lie in \[0, 1\), got \(1.5, 0.9\)"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
        ({"betas": (math.nan, 0.9)}, r"betas must lie in \[0, 1\)"),
        ({"seed": 2**63}, r"seed must be below 2\*\*63"),
    ],
)
def test_ranges(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(images=8, **changes)


def test_their_ends() -> None:
    TrainConfig(images=8, betas=(0.0, 0.0), seed=2**63 - 1, weight_decay=0.0)
