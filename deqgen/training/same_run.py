"""Whether a checkpoint belongs to the run that is about to go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deqgen.training.config import TrainConfig

# Settings that a run may be continued with changed: they leave the steps taken so far as they are.
# The length does too, except under a cosine, which is stretched over it.
MAY_CHANGE = {"images", "save_images", "keep_checkpoints", "log_images", "compile", "shard"}


def identity(config: TrainConfig, parts: int, examples: int) -> dict[str, Any]:
    """All that makes a run this one, as a checkpoint holds it; the microbatch as it is in fact."""
    settings = asdict(config)
    return {**settings, "microbatch": config.batch_size // parts, "examples": examples}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Every setting that differs and must not, in words."""
    may_change = MAY_CHANGE - ({"images"} if ours["decay"] == "cosine" else set())
    return [
        f"{name} was {theirs.get(name)} and is {value}"
        for name, value in ours.items()
        if name not in may_change and _plain(theirs.get(name)) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
