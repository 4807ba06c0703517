"""The global random numbers of a process: kept, put back, set apart.

Nothing in this library draws from them. A model with dropout does, and its run is to go on exactly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global generators of torch (CPU, and ``device`` if CUDA), NumPy and Python.

    It consists of tensors, numbers and tuples, which ``torch.load(weights_only=True)`` reads.
    """
    numpy = np.random.get_state(legacy=False)
    # As int64: PyTorch cannot send uint32 from process to process.
    words = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (words, numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    version, numbers, last = state["python"]
    random.setstate((version, tuple(numbers), last))


def set_apart(seed: int, rank: int) -> None:
    """Start the global generators of one of several processes elsewhere than the others'.

    They all begin alike, so two processes would drop the same units of different examples.
    """
    words = np.random.SeedSequence([seed, rank]).generate_state(3).tolist()
    torch.manual_seed(words[0])
    np.random.seed(words[1])
    random.seed(words[2])
