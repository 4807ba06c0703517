"""What one process is told of an error in another."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from deqgen.data.manifest import PairError
from deqgen.training import CheckpointError
from deqgen.training.agreement import _made, _said


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("a value"), ValueError, "a value"),
        (PairError("of a pair"), ValueError, "of a pair"),
        (CheckpointError("damaged"), CheckpointError, "damaged"),
        (ConnectionError("no tracker"), ConnectionError, "no tracker"),
        (FloatingPointError("zero"), ArithmeticError, "zero"),
        (KeyError("name"), RuntimeError, "KeyError: 'name'"),
        (NotImplementedError("yet"), RuntimeError, "NotImplementedError: yet"),
        (OSError("of no number"), OSError, "of no number"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_the_kind_that_is_known_and_the_text(
    error: Exception, kind: type[Exception], text: str
) -> None:
    said = json.loads(json.dumps(_said(error)))  # numbers and texts, nothing that could run
    made = _made(said)
    assert type(made) is kind
    assert str(made) == text


def test_a_full_disk_keeps_its_number_and_file() -> None:
    made = _made(_said(OSError(errno.ENOSPC, "No space left on device", Path("/x"))))
    assert isinstance(made, OSError)
    assert (made.errno, made.filename) == (errno.ENOSPC, "/x")
    assert type(_made(_said(PermissionError(errno.EACCES, "no")))) is PermissionError


def test_nobody_is_told_to_make_anything_else() -> None:
    made = _made(["os.system", "true", None, None])
    assert type(made) is RuntimeError and str(made) == "true"


def test_an_error_that_takes_more_than_a_text() -> None:
    class Odd(ValueError):
        def __init__(self, text: str, number: int) -> None:
            super().__init__(f"{text} {number}")

    assert str(_made(_said(Odd("odd", 3)))) == "odd 3"
