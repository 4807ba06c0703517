from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.running import EXAMPLES


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the examples, from which their modules can now be imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return EXAMPLES
