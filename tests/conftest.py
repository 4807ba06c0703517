"""The climate of every test: one thread, fixed seeds, no network, one hypothesis profile."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Read by the libraries when they are first imported, so set before any test module imports them.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Workers share the cores (make test runs two): more threads a worker only wait for each other, and
# the order of a sum, hence its last digit, would depend on the machine.
torch.set_num_threads(1)

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first call into torch may take a second. Derandomized: the same examples in each
# run, so that a red run is red again. A busy machine generates slowly; that is no fault of a test.
settings.register_profile(
    "deqgen",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("deqgen")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same global seeds, whatever ran before it in this worker."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data (CIFAR-10 zips, parity recordings), which git does not hold.

    Looked for at $DEQGEN_SHARED_DATA, else in ../shared/data beside the clone.
    """
    folder = Path(os.environ.get("DEQGEN_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the development data: {folder} is no folder (see DEQGEN_SHARED_DATA)")
    return folder
