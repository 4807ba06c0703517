"""Which release this is, where it is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str | None:
    """The version of this library; None for a clone that is not installed."""
    try:
        return version("deqgen")
    except PackageNotFoundError:
        return None
