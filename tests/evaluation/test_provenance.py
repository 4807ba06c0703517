"""Which deqgen made a number."""

from __future__ import annotations

import pytest

from deqgen.evaluation import provenance
from deqgen.training import environment
from deqgen.versions import installed_version


def test_the_version_has_the_commit_of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for checkout, says in (
        ({"commit": "0123456789abcdef", "dirty": False}, ", git 0123456789ab"),
        ({"commit": "0123456789abcdef", "dirty": True}, ", git 0123456789ab with changes"),
        (None, ""),
    ):
        monkeypatch.setattr(environment, "describe_checkout", lambda folder, it=checkout: it)
        said = provenance.deqgen_version.__wrapped__()
        assert said == (installed_version() or "not installed") + says
