"""examples/distillation/ending.py: what a command says at its end, and its exit status."""

from __future__ import annotations

import signal

import pytest

from deqgen.training import CheckpointError, Interrupted, TrainingDiverged

pytestmark = pytest.mark.usefixtures("examples")
STOPPED = "\nstopped; the same command continues\n"


@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (KeyboardInterrupt(), 130),
        (Interrupted("saved", signal.SIGINT), 130),
        (Interrupted("saved", signal.SIGTERM), 0),
    ],
    ids=["ctrl-c", "training", "scheduler"],
)
def test_stopped(stop: KeyboardInterrupt, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    from distillation.ending import ending

    with pytest.raises(SystemExit) as ended, ending("example"):
        raise stop
    assert ended.value.code == status
    assert capsys.readouterr() == ("", STOPPED)


@pytest.mark.parametrize(
    "kind", [ValueError, CheckpointError, FileNotFoundError, ImportError, TrainingDiverged]
)
def test_foreseen(kind: type[Exception]) -> None:
    from distillation.ending import ending

    with pytest.raises(SystemExit) as ended, ending("example"):
        raise kind("it is so")
    assert ended.value.code == "example: it is so"


def test_a_defect_keeps_its_traceback_unless_it_is_foreseen_too() -> None:
    from distillation.ending import ending

    with pytest.raises(RuntimeError, match="oh"), ending("example"):
        raise RuntimeError("oh")
    with pytest.raises(SystemExit, match="example: oh"), ending("example", (RuntimeError,)):
        raise RuntimeError("oh")
    with pytest.raises(ValueError, match="oh"), ending("example", (RuntimeError,)):
        raise ValueError("oh")


def test_a_block_that_ends_well_goes_on() -> None:
    from distillation.ending import ending

    with ending("example"):
        done = True
    assert done
