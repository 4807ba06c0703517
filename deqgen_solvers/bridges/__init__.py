"""Solvers of other libraries behind our protocol, and ours behind theirs.

1. A bridge imports its library when it is used, never before; without it nothing else is missed.
2. ``torchdeq.py`` registers torchdeq's solvers here, and on request ours there.
3. ``paced.py`` turns a solver that owns its loop into one that takes a step at a time.
4. Through it the driver counts, freezes and measures their iterates as it does ours.
5. A name of a bridge is listed by ``available_solvers()`` only where its library is installed.
"""

from __future__ import annotations

from deqgen_solvers.bridges.torchdeq import register_into_torchdeq

__all__ = ["register_into_torchdeq"]
