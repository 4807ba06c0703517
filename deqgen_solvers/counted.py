"""The function of a solve, as solvers see it: on flat states, checked and counted.

Letters: R rows, N unknowns of one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqgen_solvers.autocast import Autocast
from deqgen_solvers.errors import StateError
from deqgen_solvers.state import Layout, Tree


class CountedFunction:
    """f on flat states, (R, N) -> (R, N), with its args and a count of its calls."""

    def __init__(self, f: Callable[..., Tree], args: tuple[Any, ...], layout: Layout) -> None:
        self.f, self.args, self.layout = f, args, layout
        self.autocast = Autocast(layout.device)
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate f at z, check what it returns, and count."""
        self.calls += 1
        # Looked at once: a cell that writes to its state does so each time.
        before = _version(z) if self.calls == 1 else None
        with self.autocast.on():
            image = self.f(self.layout.unflatten(z), *self.args)
        if before is not None and before != _version(z):
            raise StateError(
                "f(z): f changed the state that it was given in place. Let it make a new tensor, "
                "for example z + x and not z += x."
            )
        return self.layout.flatten(image, rows=z.shape[0])


def _version(z: Tensor) -> int | None:
    """How often z has been written to; None where nobody counts."""
    return None if torch.compiler.is_compiling() or z.is_inference() else z._version
