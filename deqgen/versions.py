"""Which release of a package is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str = "deqgen") -> str | None:
    """The version of a package, this one by default; None for what is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
